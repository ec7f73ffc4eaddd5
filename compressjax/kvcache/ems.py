"""EMS: head-wise eviction, then merging, by a global-local score.

Tokens are ranked by a score that mixes the attention of the whole history with that of the last queries. The best of
each head become centers; the next best join the center whose key is most like theirs, or, when none is, the zero class,
which is dropped. So every head runs the same program of static shape. "EMS: Adaptive Evict-then-Merge Strategy for
Head-wise KV Cache Compression Based on Global-Local Importance", 2024, arXiv 2412.08521. No reference code is public,
and only the abstracts were read: formulas follow them where they say something and are ours where they do not. The bias
that keeps the attention mass of merged tokens is an addition.

Letters: B batch, K key heads, C centers, M merge candidates, N candidates of a flush.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from compressjax.kvcache.attention_mass import max_pool
from compressjax.kvcache.eviction import best, check_budget, check_pool, protected, take_tokens
from compressjax.kvcache.rounded import RoundedCodec
from compressjax.kvcache.slots import Candidates, SlotCodec, Slots
from compressjax.models.rope import rotary_angles, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMS(SlotCodec):
    """How tokens are kept, merged and dropped.

    Attributes:
      budget: slots per head beside the ring, the protected ones included.
      window: newest tokens that stay, and whose queries make the local score.
      merge_ratio: merge candidates a center.
      tau: least cosine similarity for a merge; above 1 everything falls into the zero class.
      center_sim: similarities between keys less their head's mean, without which nearly all keys look alike.
      merge: what is merged: "kv", "v", or "none" for eviction alone.
      rope_space: "pre" merges keys turned back to position 0 and turns them to the center's; "post" merges them as
        they are.
      mass_bias: a merged slot keeps the attention mass of its members.
      score: "glo_loc" is the larger of both scores, "global" and "local" one of them, "sum" their sum.
      pool: neighbours that share their best score.
      interval: tokens of the ring.
      sinks: first tokens that stay.
      rounding: how kept keys and values are rounded, such as ``KV4()``; None keeps them as floats.
    """

    budget: int = 256
    window: int = 32
    merge_ratio: float = 2.0
    tau: float = 0.6
    center_sim: bool = True
    merge: Literal["kv", "v", "none"] = "kv"
    rope_space: Literal["post", "pre"] = "post"
    mass_bias: bool = True
    score: Literal["glo_loc", "global", "local", "sum"] = "glo_loc"
    pool: int = 7
    interval: int = 64
    sinks: int = 0
    rounding: RoundedCodec | None = None

    needs = frozenset({"q", "probs"})

    def __post_init__(self):
        check_budget(self)
        check_pool("EMS", self.window, self.pool)
        if self.merge_ratio < 0:
            raise ValueError(f"EMS.merge_ratio must be >= 0, got {self.merge_ratio}")
        if not -1 <= self.tau <= 1.01:
            raise ValueError(f"EMS.tau must be in [-1, 1.01], got {self.tau}")
        for field, known in (
            ("merge", ("kv", "v", "none")),
            ("rope_space", ("post", "pre")),
            ("score", ("glo_loc", "global", "local", "sum")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"EMS.{field} must be one of {known}, got {getattr(self, field)!r}")

    @property
    def chunk(self):
        return self.interval

    @property
    def slots(self):
        return self.budget

    @property
    def last(self):
        return self.window

    def check(self, spec):
        check_budget(self, spec)
        self.check_rounding(spec)
        if spec.shared and self.merge == "kv" and self.rope_space == "post":
            raise ValueError("EMS.merge='kv' on latents needs rope_space='pre': a latent is key and value at once")
        if self.rope_space == "pre" and spec.rope is None:
            raise ValueError("EMS.rope_space='pre' needs a model with rotary positions; KVSpec.rope is None")

    def choose(self, spec, tokens):
        score = global_local(tokens, self.score)
        ranked = max_pool(jnp.where(tokens.valid, score, 0), self.pool)
        centers = best(tokens, ranked, self.budget, window=self.window, sinks=self.sinks)
        kept = take_tokens(tokens, centers)
        count = min(int(self.merge_ratio * (self.budget - self.window - self.sinks)), tokens.at.shape[2] - self.budget)
        if self.merge == "none" or count < 1:
            return kept
        taken = jnp.put_along_axis(jnp.zeros(ranked.shape, bool), centers, True, axis=2, inplace=False)
        free = jnp.where(tokens.valid & ~taken, ranked, -jnp.inf)
        left, others = jax.lax.top_k(free, count)
        merging = take_tokens(tokens, others)
        merging = merging._replace(at=jnp.where(left > -jnp.inf, merging.at, -1))
        weights = [jnp.take_along_axis(score, at, axis=2) for at in (centers, others)]
        return evict_then_merge(self, spec, tokens, kept, merging, *weights)


def global_local(tokens: Candidates, kind: str = "glo_loc") -> jax.Array:
    """Scores of candidates, float32 ``[B, K, N]``.

    The global score is the mean over the queries that could see a token, which removes the causal mask's bias to early
    tokens; it is brought to the local one's scale, head by head.

    Args:
      tokens: the candidates.
      kind: see `EMS.score`.
    """
    real = tokens.valid.astype(jnp.float32)
    whole = real * tokens.mass / jnp.maximum(tokens.looks, 1).astype(jnp.float32)
    recent = real * tokens.recent
    total = jnp.sum(whole, axis=-1, keepdims=True)
    whole = whole * jnp.where(total > 0, jnp.sum(recent, axis=-1, keepdims=True) / jnp.maximum(total, 1e-30), 0)
    return {
        "glo_loc": jnp.maximum(whole, recent),
        "global": whole,
        "local": recent,
        "sum": whole + recent,
    }[kind]


def evict_then_merge(
    cfg: EMS, spec, tokens: Candidates, kept: Slots, merging: Slots, center_weight: jax.Array, weight: jax.Array
) -> Slots:
    """Adds each merge candidate to the center most like it, or to none.

    Args:
      cfg, spec: the options and sizes.
      tokens: all candidates, for the head's mean key.
      kept, merging: centers ``[B, K, C]`` and merge candidates ``[B, K, M]``.
      center_weight, weight: their scores.
    """
    first = cfg.budget
    k, m = kept.k, merging.k
    if cfg.rope_space == "pre":
        k, m = (turn_keys(spec, x.k, x.at, tokens.first, back=True) for x in (kept, merging))
    mean = 0.0
    if cfg.center_sim:
        real = tokens.valid.astype(jnp.float32)[..., None]
        every = tokens.k
        if cfg.rope_space == "pre":
            every = turn_keys(spec, tokens.k, tokens.at, tokens.first, back=True)
        mean = jnp.sum(every * real, axis=2, keepdims=True) / jnp.maximum(jnp.sum(real, axis=2, keepdims=True), 1)
    alike = jnp.einsum("bkmd,bkcd->bkmc", unit(m - mean), unit(k - mean))
    # The first tokens and the newest are kept as they are, so nothing may join them.
    open_ = (kept.at >= 0) & ~protected(as_candidates(kept, tokens), window=cfg.window, sinks=cfg.sinks)
    alike = jnp.where(open_[:, :, None, :], alike, -2.0)
    zero = jnp.full((*alike.shape[:3], 1), cfg.tau)
    dest = jnp.argmax(jnp.concatenate([zero, alike], axis=-1), axis=-1)
    dest = jnp.where(merging.at >= 0, dest, 0)
    joins = jax.nn.one_hot(dest - 1, first, dtype=jnp.float32)  # class 0 becomes a row of zeros
    # What a slot draws already has its bias in it, so a slot that stands for several tokens weighs as they all did.
    own = center_weight + 1e-30
    total = own + jnp.einsum("bkm,bkmc->bkc", weight, joins)
    share = weight[..., None] * joins / total[:, :, None, :]
    grown = jnp.any(joins > 0, axis=2)

    def average(center, member):
        new = center * (own / total)[..., None] + jnp.einsum("bkmc,bkmd->bkcd", share, member)
        return jnp.where(grown[..., None], new, center)

    v = average(kept.v, merging.v) if spec.stored_values else kept.v
    new_k = kept.k
    if cfg.merge == "kv":
        merged = average(k, m)
        if cfg.rope_space == "pre":
            merged = turn_keys(spec, merged, kept.at, tokens.first, back=False)
        new_k = jnp.where(grown[..., None], merged, kept.k)
    bias = jnp.where(grown, kept.bias + jnp.log(total / own), kept.bias) if cfg.mass_bias else kept.bias
    mass = kept.mass + jnp.einsum("bkm,bkmc->bkc", merging.mass, joins)
    return kept._replace(k=new_k, v=v, bias=bias, mass=mass)


def as_candidates(slots: Slots, tokens: Candidates) -> Candidates:
    """Slots as candidates of the same moment."""
    return Candidates(*slots, slots.mass, tokens.now, tokens.first)


def unit(x: jax.Array) -> jax.Array:
    """Directions; zero stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def turn_keys(spec, k: jax.Array, at: jax.Array, first: jax.Array, *, back: bool) -> jax.Array:
    """Keys ``[B, K, N, d]`` turned from or to the rotary positions of their slots ``at [B, K, N]``."""
    b, heads, count, width = k.shape
    positions = jnp.maximum(at - first[:, None, None], 0).reshape(b * heads, count)
    cos, sin = rotary_angles(positions, width, *spec.rope)
    flat = k.reshape(b * heads, count, 1, width)
    return rotate(flat, cos, -sin if back else sin).reshape(k.shape)
