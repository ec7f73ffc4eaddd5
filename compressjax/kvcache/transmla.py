"""TransMLA: grouped-query attention rewritten as multi-head latent attention.

All key heads of a layer are taken as one vector. Rotary positions turn the same frequency in every head by the same
angle, so an orthogonal matrix across heads, the same for both parts of a pair, commutes with them (RoRoPE): it gathers
what the keys hold of a frequency in few components. Those keep their positions; the others give them up and join the
values in a latent, cut to its principal components after keys and values were brought to one scale (BKV-PCA). Adjacent
frequencies can be treated as one to gather more (FreqFold), which is then no longer exact. Meng et al., 2025,
"TransMLA: Multi-Head Latent Attention Is All You Need", arXiv 2502.07864.

Departures: the scale stays that of a head, so no weight is rescaled; values are balanced over all their columns; the
latent has no norm.

Letters: L layers, D width, H query heads, K key heads, d head width, m frequencies folded, r latent and p rotary width.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.kvcache.decoding import LlamaForm
from compressjax.kvcache.latent import LatentForm, latent_hidden, linear
from compressjax.models.config import LlamaConfig
from compressjax.ops import dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransMLA:
    """Sizes of the converted attention.

    Attributes:
      kv_lora_rank: width of the latent, r.
      qk_rope_dim: width of the rotary key, p: a divisor of d, or a multiple of it up to K d (without folding).
      freqfold: frequencies treated as one, m.
      q_lora_rank: rank of the query projection; None leaves it whole.
      balance_kv: how large keys may be against values before the cut, by mean column norm; None does not balance.
      damp: what is added to the diagonal of moments, relative to its mean.
    """

    kv_lora_rank: int = 512
    qk_rope_dim: int = 64
    freqfold: int = 1
    q_lora_rank: int | None = None
    balance_kv: float | None = 1.0
    damp: float = 0.01

    def __post_init__(self):
        for field in ("kv_lora_rank", "qk_rope_dim", "freqfold"):
            if getattr(self, field) < 1:
                raise ValueError(f"TransMLA.{field} must be >= 1, got {getattr(self, field)}")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ValueError(f"TransMLA.q_lora_rank must be None or >= 1, got {self.q_lora_rank}")
        if self.balance_kv is not None and not self.balance_kv > 0:
            raise ValueError(f"TransMLA.balance_kv must be None or > 0, got {self.balance_kv}")
        if self.damp < 0:
            raise ValueError(f"TransMLA.damp must be >= 0, got {self.damp}")

    def check(self, cfg: LlamaConfig) -> None:
        """Refuses, with a ValueError, models and sizes that have no such conversion."""
        d, p, m, merged = cfg.head_dim, self.qk_rope_dim, self.freqfold, cfg.num_kv_heads * cfg.head_dim
        if cfg.qk_norm:
            raise ValueError("TransMLA cannot convert a model with norms of query and key heads (qk_norm)")
        if (d // 2) % m:
            raise ValueError(f"TransMLA.freqfold={m} does not divide the {d // 2} frequencies of a head")
        if p > d and (m != 1 or p % d or p > merged):
            raise ValueError(
                f"TransMLA.qk_rope_dim={p} above the head width {d} must be a multiple of it, at most {merged}, with "
                f"freqfold=1, got freqfold={m}"
            )
        if p <= d and (d % p or m % (d // p)):
            raise ValueError(
                f"TransMLA.qk_rope_dim={p} must divide the head width {d}, and freqfold={m} be a multiple of their "
                f"ratio"
            )
        if self.kv_lora_rank > 2 * merged - p:
            raise ValueError(
                f"TransMLA.kv_lora_rank={self.kv_lora_rank} exceeds the {2 * merged - p} channels that are left for it"
            )
        if self.q_lora_rank is not None and self.q_lora_rank > cfg.num_heads * d:
            raise ValueError(f"TransMLA.q_lora_rank={self.q_lora_rank} exceeds the {cfg.num_heads * d} query channels")

    def frequencies(self, head_dim: int) -> tuple[int, ...]:
        """Which rotary frequency each kept component turns with, group by group."""
        groups, kept = head_dim // (2 * self.freqfold), self.qk_rope_dim * self.freqfold // head_dim
        apart = max(1, head_dim // self.qk_rope_dim) if self.freqfold > 1 else 0
        return tuple(j * self.freqfold + s * apart for j in range(groups) for s in range(kept))


class LatentStats(NamedTuple):
    """Second moments per layer, sums over tokens; those of two texts are added.

    Attributes:
      count: float32 scalar, tokens.
      k: ``[L, K d, K d]``, of keys before rotation, heads one after the other.
      q: ``[L, H d, H d]``, of queries before rotation.
    """

    count: jax.Array
    k: jax.Array
    q: jax.Array


def collect_kv_stats(cfg: LlamaConfig, params: Any, batches: Iterable[Any]) -> LatentStats:
    """Moments of keys and queries before rotation over texts ``int [B, T]``; no activations are kept.

    Raises:
      ValueError: no batch.
    """
    form = LlamaForm(cfg)

    def per_layer(h, attn):
        return linear(h, attn["k"]), linear(h, attn["q"])

    def of(params, tokens):
        return _moments(form, params, tokens, per_layer)

    (k, q), count = _summed(jax.jit(of), params, batches)
    return LatentStats(jnp.float32(count), k, q)


def _moments(form, params, tokens, outputs):
    """``sum y y^T`` by layer of every output that ``outputs(h, attn)`` names."""
    _, inputs = latent_hidden(form, params, tokens)

    def one(own):
        h, attn = own
        flat = [y.reshape(-1, y.shape[-1]).astype(jnp.float32) for y in outputs(h, attn)]
        return [y.T @ y for y in flat]

    return jax.lax.map(one, (inputs, params["blocks"]["attn"]))


def _summed(of, params, batches):
    found, count = None, 0
    for tokens in batches:
        tokens = jnp.asarray(tokens, jnp.int32)
        new = of(params, tokens)
        found = new if found is None else jax.tree.map(jnp.add, found, new)
        count += tokens.size
    if found is None:
        raise ValueError("moments need at least one batch of texts")
    return found, count


def rorope_rotation(second: np.ndarray, cfg: TransMLA, heads: int, head_dim: int) -> np.ndarray:
    """The orthogonal matrices that gather each group of frequencies, float64 ``[d / 2m, K m, K m]``, rows new.

    Eigenvectors, in descending order, of the moments of both parts of the pairs together, so that one matrix turns
    both and commutes with rotation.

    Args:
      second: ``[K d, K d]``, of keys before rotation.
      cfg: the sizes.
      heads: K.
      head_dim: d.
    """
    m, half = cfg.freqfold, head_dim // 2
    out = []
    for group in range(half // m):
        real, imaginary = _places(group, m, heads, head_dim)
        c = second[np.ix_(real, real)] + second[np.ix_(imaginary, imaginary)]
        c = c + cfg.damp * np.mean(np.diag(c)) * np.eye(len(c))
        out.append(np.linalg.eigh(c)[1][:, ::-1].T)
    return np.stack(out)


def _places(group, m, heads, head_dim):
    """Channels of the merged key that hold the real and the imaginary parts of a group."""
    own = (np.arange(heads)[:, None] * head_dim + group * m + np.arange(m)[None]).ravel()
    return own, own + head_dim // 2


def rotation_rows(second: np.ndarray, cfg: TransMLA, heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The merged key's new channels: rotary rows ``[p, K d]``, real parts first, and the others ``[K d - p, K d]``."""
    kept = cfg.qk_rope_dim * cfg.freqfold // head_dim
    rope_re, rope_im, rest = [], [], []
    for group, u in enumerate(rorope_rotation(second, cfg, heads, head_dim)):
        rows = []
        for places in _places(group, cfg.freqfold, heads, head_dim):
            wide = np.zeros((len(u), heads * head_dim))
            wide[:, places] = u
            rows.append(wide)
        rope_re.append(rows[0][:kept])
        rope_im.append(rows[1][:kept])
        rest += [rows[0][kept:], rows[1][kept:]]
    return np.concatenate(rope_re + rope_im), np.concatenate(rest)


def gqa_to_mla(
    cfg: LlamaConfig,
    params: Any,
    stats: LatentStats,
    mla: TransMLA,
    batches: Iterable[Any],
    *,
    white: bool = False,
) -> tuple[LatentForm, dict]:
    """Converts every layer of a model.

    Args:
      cfg, params: the model.
      stats: of the model itself.
      mla: the sizes.
      batches: texts ``int [B, T]`` for the moments of the model with partial rotary positions; not read when the
        latent is not cut.
      white: cut by what the weights do to white inputs instead; a baseline.

    Returns:
      The `LatentForm`, and the parameters it reads.

    Raises:
      ValueError: as `TransMLA.check`, or moments that are not finite.
    """
    mla.check(cfg)
    if not all(bool(jnp.all(jnp.isfinite(x))) for x in stats):
        raise ValueError("the moments of keys and queries are not finite")
    merged = cfg.num_kv_heads * cfg.head_dim
    full = 2 * merged - mla.qk_rope_dim
    second = np.asarray(stats.k, np.float64)
    rows = [rotation_rows(c, mla, cfg.num_kv_heads, cfg.head_dim) for c in second]
    whole = [(np.eye(full), np.ones(full))] * cfg.num_layers
    frequencies = mla.frequencies(cfg.head_dim)
    form = LatentForm(cfg, full, frequencies)
    converted = _convert(cfg, params, rows, whole)
    if mla.kv_lora_rank < full:

        def of(params, tokens):
            return _moments(form, params, tokens, lambda h, attn: (linear(h, attn["kv_a"]),))

        if white:
            kernel = converted["blocks"]["attn"]["kv_a"]["kernel"]
            joint = jnp.swapaxes(kernel, -1, -2) @ kernel
        else:
            joint = _summed(jax.jit(of), converted, batches)[0][0]
        cut = [_principal(c, merged - mla.qk_rope_dim, mla) for c in np.asarray(joint, np.float64)]
        form = LatentForm(cfg, mla.kv_lora_rank, frequencies)
        converted = _convert(cfg, params, rows, cut)
    if mla.q_lora_rank is not None:
        _cut_queries(converted["blocks"]["attn"], np.asarray(stats.q, np.float64), mla.q_lora_rank)
    return form, converted


def balance(second: np.ndarray, nope: int, cfg: TransMLA) -> float:
    """How much larger the first ``nope`` channels are than the others, by mean norm."""
    if cfg.balance_kv is None or not nope:
        return 1.0
    norm = np.sqrt(np.diag(second))
    return float(np.mean(norm[:nope]) / max(cfg.balance_kv * np.mean(norm[nope:]), 1e-30)) or 1.0


def _principal(second, nope, cfg):
    """Principal components ``[2 K d - p, r]`` of balanced keys and values, and the scale of every channel."""
    scale = np.ones(len(second))
    scale[:nope] = 1 / balance(second, nope, cfg)
    c = second * scale[:, None] * scale[None]
    c = c + cfg.damp * np.mean(np.diag(c)) * np.eye(len(c))
    return np.linalg.eigh(c)[1][:, ::-1][:, : cfg.kv_lora_rank], scale


def _convert(cfg, params, rows, components):
    """Parameters for rotary and other rows, and components of what is not rotary, one pair a layer."""
    attn = params["blocks"]["attn"]
    heads, kv_heads, d, merged = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    head_of = np.arange(heads) // (heads // kv_heads)
    kernels = {name: np.asarray(dense(attn[name]["kernel"]), np.float64) for name in ("k", "v")}
    made = {name: [] for name in ("kv_a", "kv_a_bias", "k_rope", "k_rope_bias", "q_rope", "kv_b_k", "kv_b_v")}
    for layer, ((rope, rest), (r, scale)) in enumerate(zip(rows, components, strict=True)):
        down = np.concatenate([kernels["k"][layer] @ rest.T, kernels["v"][layer]], axis=1) * scale[None]
        up = r / scale[:, None]
        made["kv_a"].append(down @ r)
        made["k_rope"].append(kernels["k"][layer] @ rope.T)
        if "bias" in attn["k"]:
            bias_k, bias_v = (np.asarray(attn[name]["bias"][layer], np.float64) for name in ("k", "v"))
            made["kv_a_bias"].append((np.concatenate([rest @ bias_k, bias_v]) * scale) @ r)
            made["k_rope_bias"].append(rope @ bias_k)
        nope = len(rest)
        made["q_rope"].append(np.swapaxes(rope.reshape(-1, kv_heads, d), 0, 1)[head_of].transpose(0, 2, 1))
        keys = np.einsum("ng,nr->gr", rest, up[:nope]).reshape(kv_heads, d, -1)
        made["kv_b_k"].append(keys[head_of])
        made["kv_b_v"].append(up[nope:].reshape(kv_heads, d, -1)[head_of])
    assert merged == rows[0][0].shape[1]
    array = lambda name: jnp.asarray(np.stack(made[name]), jnp.float32)  # noqa: E731
    new = {"q": attn["q"], "o": attn["o"], "kv_a": {"kernel": array("kv_a")}, "k_rope": {"kernel": array("k_rope")}}
    new |= {name: array(name) for name in ("q_rope", "kv_b_k", "kv_b_v")}
    if made["kv_a_bias"]:
        new["kv_a"]["bias"], new["k_rope"]["bias"] = array("kv_a_bias"), array("k_rope_bias")
    return {**params, "blocks": {**params["blocks"], "attn": new}}


def _cut_queries(attn, second, rank):
    """Replaces the query projection by two of inner width ``rank``, the principal components of its outputs."""
    vectors = np.linalg.eigh(second)[1][..., ::-1][..., :rank]
    q = attn.pop("q")
    kernel = np.asarray(dense(q["kernel"]), np.float64)
    attn["q_a"] = {"kernel": jnp.asarray(kernel @ vectors, jnp.float32)}
    attn["q_b"] = {"kernel": jnp.asarray(np.swapaxes(vectors, -1, -2), jnp.float32)}
    if "bias" in q:
        attn["q_b"]["bias"] = q["bias"]


def choose_freqfold(
    cfg: LlamaConfig, rope_dim: int, perplexity: Callable[[int], float]
) -> tuple[int, dict[int, float]]:
    """Doubles the fold from ``d / p`` on as long as held-out perplexity falls.

    Args:
      cfg: the model.
      rope_dim: p, at most d.
      perplexity: of the model converted with this fold.

    Returns:
      The fold, and every perplexity that was measured.
    """
    d = cfg.head_dim
    if rope_dim > d or d % rope_dim:
        raise ValueError(f"rope_dim must divide the head width {d}, got {rope_dim}")
    fold, seen = d // rope_dim, {}
    seen[fold] = perplexity(fold)
    while 2 * fold <= d // 2:
        seen[2 * fold] = perplexity(2 * fold)
        if not seen[2 * fold] < seen[fold]:
            break
        fold *= 2
    return fold, seen
