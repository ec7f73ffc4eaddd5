"""MiniCache: adjacent layers share one direction per token and keep their own magnitudes.

Keys (rotated) and values of two layers are each cut into magnitude and direction; the two directions are merged along
the great circle between them and, if asked, rounded; ``x^l ~ m^l e``. Tokens whose directions differ most are retained
as they are, in both layers. Liu et al., 2024, "MiniCache: KV Cache Compression in Depth Dimension for Large Language
Models", arXiv 2405.14366. It rests on adjacent layers being alike; where they are not, it cannot work, and `plan_pairs`
says which are. The retention threshold and the form of the merge come from the paper's abstract and captions.

Letters: B batch, K key heads, n tokens of a block, d head width, R retained tokens.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.blocks import BlockCodec
from compressjax.kvcache.dense import DenseKV
from compressjax.kvcache.gear import GEAR, gear_compress, gear_decompress
from compressjax.kvcache.packed import pack_groups, unpack_groups
from compressjax.kvcache.partial import dot, mix
from compressjax.kvcache.protocol import Segment
from compressjax.kvcache.rounded import KIVI, check_ring, check_sinks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniCache(BlockCodec):
    """Which layers are merged, and how.

    Attributes:
      start: first layer of the first pair; None is the middle of the stack. An odd last layer stays alone.
      pairs: lower layers of the pairs, for example from `plan_pairs`; None takes all from ``start`` on.
      t: where between the two directions the merged one lies, 0 at the lower layer; the paper leans to 0.6.
      gamma: tokens are retained whose distance lies within this share of the range below the largest.
      granularity: directions of single heads or of all heads of a token together.
      retain_cap: most tokens of a block that can be retained, as a share; those that differ most come first.
      bits: code width of directions, and of the layers that are not merged; None rounds nothing.
      group: values that share a scale.
      residual: tokens of the ring.
      sinks: first tokens kept exactly.
      merge: "slerp"; "average" of the vectors, or "max_norm", the vector of the larger norm, are the paper's baselines
        and lose magnitudes.
      gear: rounds directions with GEAR's parts instead; a `GEAR` of the same ring.
    """

    start: int | None = None
    pairs: tuple[int, ...] | None = None
    t: float = 0.5
    gamma: float = 0.05
    granularity: Literal["head", "token"] = "head"
    retain_cap: float = 0.10
    bits: int | None = 4
    group: int = 64
    residual: int = 128
    sinks: int = 4
    merge: Literal["slerp", "average", "max_norm"] = "slerp"
    gear: GEAR | None = None

    unit = 2

    def __post_init__(self):
        for field in ("t", "gamma", "retain_cap"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"MiniCache.{field} must be in [0, 1], got {getattr(self, field)}")
        for field, known in (("granularity", ("head", "token")), ("merge", ("slerp", "average", "max_norm"))):
            if getattr(self, field) not in known:
                raise ValueError(f"MiniCache.{field} must be one of {known}, got {getattr(self, field)!r}")
        if self.bits not in (None, 2, 4, 8):
            raise ValueError(f"MiniCache.bits must be None, 2, 4 or 8, got {self.bits}")
        if self.start is not None and self.start < 0:
            raise ValueError(f"MiniCache.start must be >= 0, got {self.start}")
        if self.gear is not None and self.gear.residual != self.residual:
            raise ValueError(f"MiniCache.gear.residual={self.gear.residual} must equal residual={self.residual}")
        check_ring("MiniCache", self.residual, self.group if self.bits is not None and self.gear is None else None)
        check_sinks("MiniCache", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    @property
    def alone(self) -> Any:
        """The codec of layers that are not merged."""
        if self.gear is not None:
            return dataclasses.replace(self.gear, sinks=self.sinks)
        if self.bits is None:
            return DenseKV(residual=self.residual, sinks=self.sinks)
        return KIVI(bits=self.bits, group=self.group, residual=self.residual, sinks=self.sinks)

    def segments(self, layers):
        lower = self.pairs
        if lower is None:
            start = layers // 2 if self.start is None else self.start
            if start > layers - 2:
                raise ValueError(f"MiniCache.start must be in 0..{layers - 2} for {layers} layers, got {start}")
            lower = tuple(range(start, layers - 1, 2))
        if any(b - a < 2 for a, b in zip(lower, lower[1:], strict=False)) or any(
            not 0 <= a <= layers - 2 for a in lower
        ):
            raise ValueError(f"MiniCache.pairs must be disjoint pairs of {layers} layers, got lower layers {lower}")
        out, at = [], 0
        for low in lower:
            if low > at:
                out.append(Segment(self.alone, at, low))
            if out and out[-1].codec == self and out[-1].stop == low:
                out[-1] = Segment(self, out[-1].start, low + 2)
            else:
                out.append(Segment(self, low, low + 2))
            at = low + 2
        return (*out, Segment(self.alone, at, layers)) if at < layers else tuple(out)

    def check(self, spec):
        if spec.shared:
            raise ValueError("MiniCache merges keys and values apart; a cache whose values are part of keys has none")
        if self.bits is not None and self.gear is None and spec.values % self.group:
            raise ValueError(f"MiniCache.group={self.group} does not divide the head width {spec.values}")
        if self.gear is not None:
            self.gear.check(spec)

    def compress(self, spec, fixed, k, v, tokens):
        return MergedBlock(
            *(
                merge_pair(x[0], x[1], kind, self, tokens.keep, tokens.prompt, spec.dtype)
                for x, kind in ((k, "key"), (v, "value"))
            )
        )

    def scores(self, spec, fixed, block, q, view, slots, sub):
        held = block.k
        found = dot(q, self._directions(held, "key", spec.head_dim))
        found = found * held.magnitude[sub].astype(jnp.float32)[:, :, None, None]
        if held.kept is None:
            return found, None
        rows = dot(q, held.rows[sub])
        at = jnp.broadcast_to(held.kept.astype(jnp.int32)[:, :, None, None], rows.shape)
        return jnp.put_along_axis(found, at, rows, axis=-1, inplace=False), None

    def average(self, spec, fixed, block, weights, again, sub):
        held = block.v
        magnitude = held.magnitude[sub].astype(jnp.float32)[:, :, None, None]
        directions = self._directions(held, "value", spec.values)
        if held.kept is None:
            return mix(weights * magnitude, directions)
        at = held.kept.astype(jnp.int32)[:, :, None, None]
        at = jnp.broadcast_to(at, (*weights.shape[:-1], at.shape[-1]))
        exact = jnp.take_along_axis(weights, at, axis=-1, mode="fill", fill_value=0)
        merged = jnp.put_along_axis(weights, at, jnp.zeros_like(exact), axis=-1, inplace=False)
        return mix(merged * magnitude, directions) + mix(exact, held.rows[sub])

    def decompress(self, spec, fixed, block, slots, view, sub):
        return (
            restore_pair(block.k, "key", self, sub, spec.head_dim),
            restore_pair(block.v, "value", self, sub, spec.values),
        )

    def _directions(self, held: "Merged", kind: Any, width: int) -> jax.Array:
        """Merged directions float32 ``[B, K, n, d]``; made unit again, so that magnitudes mean what they say."""
        if self.gear is not None:
            e = gear_decompress(held.direction, kind, self.gear, width)
        elif self.bits is not None:
            e = unpack_groups(held.direction, "channel" if kind == "key" else "token", bits=self.bits)
        else:
            e = held.direction.astype(jnp.float32)
        return e if self.merge != "slerp" else unit(e, self.granularity)


class Merged(NamedTuple):
    """Keys or values of a block in two layers.

    Attributes:
      direction: shared, ``[B, K, n, d]`` or its codes.
      magnitude: bfloat16 ``[2, B, K, n]``, K being 1 where heads were taken together.
      kept: uint16 ``[B, K, R]``, tokens retained; n where there are fewer. None when R is 0.
      rows: ``[2, B, K, R, d]``, their vectors in both layers.
    """

    direction: Any
    magnitude: jax.Array
    kept: jax.Array | None
    rows: jax.Array


class MergedBlock(NamedTuple):
    """Keys and values."""

    k: Merged
    v: Merged


def unit(x: jax.Array, granularity: str = "head") -> jax.Array:
    """Directions of ``[..., K, n, d]``; zero stays zero."""
    return x / jnp.maximum(norms(x, granularity)[..., None], 1e-20)


def norms(x: jax.Array, granularity: str = "head") -> jax.Array:
    """Euclidean norms ``[..., K, n]``, or ``[..., 1, n]`` over all heads."""
    square = jnp.sum(jnp.square(x), axis=-1)
    return jnp.sqrt(square if granularity == "head" else jnp.sum(square, axis=-2, keepdims=True))


def angles(u: jax.Array, v: jax.Array, granularity: str = "head") -> jax.Array:
    """Angles in radians between directions ``[..., K, n, d]``, ``[..., K or 1, n]``.

    By the chord and not the cosine, whose inverse is blind near 0 and pi.
    """
    return 2 * jnp.arctan2(norms(u - v, granularity), norms(u + v, granularity))


def slerp(u: jax.Array, v: jax.Array, t: float, granularity: str = "head") -> jax.Array:
    """The direction at share t of the way from ``u`` to ``v``, both unit ``[..., K, n, d]``.

    ``sin((1 - t) w) / sin w u + sin(t w) / sin w v`` with the angle w between them; nearly equal ones are interpolated
    linearly and made unit again.
    """
    w = angles(u, v, granularity)
    near = w < 1e-4
    sine = jnp.where(near, 1.0, jnp.maximum(jnp.sin(w), 1e-7))
    first = jnp.where(near, 1 - t, jnp.sin((1 - t) * w) / sine)
    second = jnp.where(near, t, jnp.sin(t * w) / sine)
    return unit(first[..., None] * u + second[..., None] * v, granularity)


def merge_pair(
    low: jax.Array, high: jax.Array, kind: Any, cfg: MiniCache, keep: jax.Array, prompt: bool, dtype: str
) -> Merged:
    """Merges one block of two layers.

    Args:
      low, high: float32 ``[B, K, n, d]``, keys or values of the lower and the upper layer.
      kind: "key" or "value", which decides how directions are rounded.
      cfg: the options.
      keep: bool ``[B, n]``, tokens that count.
      prompt: whether this is the block of the prompt.
      dtype: of retained rows.
    """
    heads, tokens = low.shape[1], low.shape[2]
    low, high = (jnp.where(keep[:, None, :, None], x, 0) for x in (low, high))
    magnitude = jnp.stack([norms(low, cfg.granularity), norms(high, cfg.granularity)])
    u, v = unit(low, cfg.granularity), unit(high, cfg.granularity)
    apart = angles(u, v, cfg.granularity)
    if cfg.merge == "slerp":
        e = slerp(u, v, cfg.t, cfg.granularity)
    elif cfg.merge == "average":
        e, magnitude = 0.5 * (low + high), jnp.ones_like(magnitude)
    else:
        larger = (magnitude[0] > magnitude[1])[..., None]
        e, magnitude = jnp.where(larger, low, high), jnp.ones_like(magnitude)
    kept, rows = _retained(jnp.stack([low, high]), apart, cfg, keep, heads, tokens, dtype)
    if cfg.gear is not None:
        rank = cfg.gear.rank if prompt else cfg.gear.rank_decode
        direction = gear_compress(e, kind, cfg.gear, rank, keep, dtype)
    elif cfg.bits is not None:
        axis = "channel" if kind == "key" else "token"
        direction = pack_groups(e, axis, bits=cfg.bits, group=cfg.group, keep=keep)
    else:
        direction = e.astype(dtype)
    return Merged(direction, magnitude.astype("bfloat16"), kept, rows)


def _retained(both, apart, cfg, keep, heads, tokens, dtype):
    """Tokens with ``d > d_max - gamma (d_max - d_min)``, at most a share ``retain_cap``, and their rows."""
    room = math.ceil(cfg.retain_cap * tokens) if cfg.gamma > 0 else 0
    if cfg.gamma >= 1:
        room = tokens
    if not room:
        return None, jnp.zeros((2, *both.shape[1:3], 0, both.shape[-1]), dtype)
    apart = jnp.broadcast_to(apart, both.shape[1:4])
    most = jnp.max(jnp.where(keep[:, None], apart, -jnp.inf), axis=-1, keepdims=True)
    least = jnp.min(jnp.where(keep[:, None], apart, jnp.inf), axis=-1, keepdims=True)
    wanted = apart > most - cfg.gamma * (most - least)
    if cfg.gamma >= 1:
        wanted = jnp.ones_like(wanted)
    # Opposite directions have no way between them.
    wanted = (wanted | (apart > math.pi - 1e-3)) & keep[:, None]
    score, at = jax.lax.top_k(jnp.where(wanted, apart, -1.0), room)
    rows = jnp.take_along_axis(both, at[None, ..., None], axis=3).astype(dtype)
    return jnp.where(score >= 0, at, tokens).astype(jnp.uint16), rows


def restore_pair(held: Merged, kind: Any, cfg: MiniCache, which: int, width: int) -> jax.Array:
    """Vectors of the lower (0) or the upper (1) layer, float32 ``[B, K, n, d]``."""
    x = cfg._directions(held, kind, width) * held.magnitude[which].astype(jnp.float32)[..., None]
    if held.kept is None:
        return x
    at = jnp.broadcast_to(held.kept.astype(jnp.int32)[..., None], held.rows[which].shape)
    return jnp.put_along_axis(x, at, held.rows[which].astype(jnp.float32), axis=2, inplace=False, mode="drop")


def layer_similarity(k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean cosine between each layer and the next, of keys and of values.

    Args:
      k, v: ``[L, B, S, K, d]``, as `plain_prompt` gives them.
      mask: bool ``[B, S]``, the real tokens.

    Returns:
      float32 ``[L - 1, 2]``.
    """
    counts = jnp.ones(k.shape[1:3], bool) if mask is None else mask
    out = []
    for x in (k, v):
        e = unit(x.astype(jnp.float32))
        cosine = jnp.sum(e[:-1] * e[1:], axis=-1)
        total = jnp.sum(counts, dtype=jnp.int32).astype(jnp.float32) * x.shape[3]
        out.append(jnp.sum(jnp.where(counts[None, :, :, None], cosine, 0), axis=(1, 2, 3)) / total)
    return jnp.stack(out, axis=1)


def plan_pairs(similarity: jax.Array, *, start: int | None = None, min_cos: float = 0.5) -> tuple[int, ...]:
    """Lower layers of the pairs that are alike enough to be merged.

    Args:
      similarity: ``[L - 1, 2]``, of `layer_similarity`.
      start: first layer that may be merged; None is the middle of the stack.
      min_cos: least cosine of both keys and values.

    Returns:
      For `MiniCache.pairs`; empty when no two layers are alike, and then there is nothing to merge.

    Raises:
      ValueError: similarities of another shape, or not finite.
    """
    found = jax.device_get(similarity)
    if found.ndim != 2 or found.shape[1] != 2 or not (abs(found) <= 1.0001).all():
        raise ValueError(f"similarity must be finite cosines [L - 1, 2], got shape {found.shape}")
    layers = len(found) + 1
    at, out = layers // 2 if start is None else start, []
    if not 0 <= at <= layers - 2:
        raise ValueError(f"start must be in 0..{layers - 2} for {layers} layers, got {at}")
    while at <= layers - 2:
        alike = found[at].min() >= min_cos
        out += [at] if alike else []
        at += 2 if alike else 1
    return tuple(out)
