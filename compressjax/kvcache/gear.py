"""GEAR: a few-bit base, a low-rank fit of its error per head, and the extreme entries exactly.

A block of keys or values is held as ``D + L + S``. The extreme entries of every vector go to S with value and place and
are replaced by the vector's mean, so that they stretch no range; the rest is rounded to D; what D misses, S apart, is
fitted per head by ``L = A Bᵀ`` with a few turns of power iteration. Attention never forms L: it adds ``(q B) Aᵀ`` to
scores and ``(w A) Bᵀ`` to averages. Kang et al., 2024, "GEAR", arXiv 2403.05527.

Departures from the reference: ``2^b - 1`` levels at every width, outliers counted along the vector they lie in, a basis
per row and head, and padding that takes part in nothing.

Letters: B batch, K key heads, n tokens of a block, d head width, r rank, N length of a vector, m outliers of one.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.blocks import BlockCodec
from compressjax.kvcache.extremes import Kind, entries_of, outliers, put_back, set_apart, vectors_of
from compressjax.kvcache.low_rank_fit import low_rank, thin, wide
from compressjax.kvcache.packed import Axis, Packed, pack_groups, unpack_groups
from compressjax.kvcache.packed_append import append_groups, append_refusal
from compressjax.kvcache.packed_attention import Rounded
from compressjax.kvcache.partial import dot, mix
from compressjax.kvcache.rounded import check_ring, check_sinks


@dataclasses.dataclass(frozen=True, kw_only=True)
class GEAR(BlockCodec):
    """How keys and values are compressed.

    Attributes:
      bits: code width of the base.
      base: "kivi", keys in groups of tokens inside a channel and values in groups of channels inside a token; "kcvt",
        one group for a whole channel of keys and for a whole token of values over all heads; "token", groups of
        channels inside a token for both.
      group: values that share a scale, where ``base`` has groups.
      rank: of the fit in the prompt's block; 0 for none.
      rank_decode: the same in later blocks.
      sparsity: share of entries kept exactly, half of them the largest and half the smallest of every vector; a vector
        of fewer than ``2 / sparsity`` entries, such as a channel in one short block, keeps none.
      iters: turns of the power iteration; 1 is a sketch, 3 is near the best fit.
      residual: tokens of the ring, and of a later block.
      sinks: first tokens kept exactly; the paper has none.
      dtype: of scales, low ends and factors, 16 bits.
    """

    bits: int = 2
    base: Literal["kivi", "kcvt", "token"] = "kivi"
    group: int = 64
    rank: int = 4
    rank_decode: int = 2
    sparsity: float = 0.02
    iters: int = 3
    residual: int = 64
    sinks: int = 4
    dtype: str = "float16"

    def __post_init__(self):
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"GEAR.bits must be 2, 3, 4 or 8, got {self.bits}")
        if self.base not in ("kivi", "kcvt", "token"):
            raise ValueError(f"GEAR.base must be 'kivi', 'kcvt' or 'token', got {self.base!r}")
        if self.group < 2:
            raise ValueError(f"GEAR.group must be >= 2, got {self.group}")
        for field in ("rank", "rank_decode"):
            if not 0 <= getattr(self, field) <= self.residual:
                raise ValueError(f"GEAR.{field} must be in 0..residual={self.residual}, got {getattr(self, field)}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"GEAR.sparsity must be in [0, 1), got {self.sparsity}")
        if self.iters < 1:
            raise ValueError(f"GEAR.iters must be >= 1, got {self.iters}")
        if self.dtype not in ("float16", "bfloat16"):
            raise ValueError(f"GEAR.dtype must be 'float16' or 'bfloat16', got {self.dtype!r}")
        check_ring("GEAR", self.residual, self.group if self.base == "kivi" else None)
        check_sinks("GEAR", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    def check(self, spec):
        for kind, width in (("keys", spec.head_dim), ("values", spec.stored_values)):
            if self.base != "kcvt" and (kind == "values" or self.base == "token") and width % self.group:
                raise ValueError(f"GEAR.group={self.group} does not divide the head width {width} of {kind}")
            if width and max(self.rank, self.rank_decode) > width:
                raise ValueError(f"GEAR.rank and rank_decode must be at most the head width {width} of {kind}")
        lengths = [max(self.residual, spec.prompt // self.residual * self.residual)]
        lengths += [spec.kv_heads * spec.stored_values] if spec.stored_values else []
        if self.sparsity and not any(outliers(self.sparsity, length) for length in lengths):
            raise ValueError(
                f"GEAR.sparsity={self.sparsity} keeps no outlier of vectors of {' and '.join(map(str, lengths))} "
                "entries (keys along tokens, values along channels); raise it or set it to 0"
            )

    def compress(self, spec, fixed, k, v, tokens):
        rank = self.rank if tokens.prompt else self.rank_decode
        keys = gear_compress(k, "key", self, rank, tokens.keep, spec.dtype)
        if spec.shared:
            return GearBlocks(keys, None)
        return GearBlocks(keys, gear_compress(v, "value", self, rank, tokens.keep, spec.dtype))

    def append_refusal(self, spec, k, v):
        (axis, group, _), (v_axis, v_group, _) = (_layout(kind, self, k.shape[1:]) for kind in ("key", "value"))
        why = append_refusal(k[0], axis, group)
        return why if why or spec.shared else append_refusal(v[0], v_axis, v_group)

    def append_block(self, spec, fixed, blocks, k, v, tokens, at):
        def appended(held, x, kind: Kind):
            return gear_append(held, x.astype(jnp.float32), at, kind, self, tokens.keep, spec.dtype)

        keys = appended(blocks.k, k, "key")
        return GearBlocks(keys, None if spec.shared else appended(blocks.v, v, "value"))

    def rounded_sides(self, spec, block):
        if spec.shared:
            return "values are part of the keys"
        if self.base == "kcvt":
            return "values of all heads share a scale"
        axis = "channel" if self.base == "kivi" else "token"
        (k, *k_parts), (v, *v_parts) = block.k, block.v
        return Rounded(k, axis, self.bits, *k_parts), Rounded(v, "token", self.bits, *v_parts)

    def scores(self, spec, fixed, block, q, view, slots, sub):
        base = gear_base(block.k, "key", self, spec.head_dim)
        found = dot(q, base)
        if block.k.a is not None:
            # No product forms the n by d fit: two thin ones meet in r numbers a query.
            found = found + dot(thin(q, block.k.b), block.k.a)
        return found, (spec.value_of(base, base) if spec.shared else None)

    def average(self, spec, fixed, block, weights, again, sub):
        held = block.k if spec.shared else block.v
        out = mix(weights, again if spec.shared else gear_base(held, "value", self, spec.values))
        if held.a is None:
            return out
        return out + wide(mix(weights, held.a), held.b)[..., : spec.values]

    def decompress(self, spec, fixed, block, slots, view, sub):
        k = gear_decompress(block.k, "key", self, spec.head_dim)
        if spec.shared:
            return k, spec.value_of(k, k)
        return k, gear_decompress(block.v, "value", self, spec.values)


class GearBlock(NamedTuple):
    """Keys or values of a block.

    Attributes:
      base: codes and scales.
      a: ``[B, K, n, r]``, orthonormal columns; None at rank 0.
      b: ``[B, K, d, r]``; None at rank 0.
      at: uint16 or uint32, places of the outliers in their vectors: ``[B, K, d, m]`` of keys, along tokens;
        ``[B, n, m]`` of values, along heads and channels; None without outliers.
      exact: their values, same shape.
    """

    base: Packed
    a: jax.Array | None
    b: jax.Array | None
    at: jax.Array | None
    exact: jax.Array | None


class GearBlocks(NamedTuple):
    """Keys and values; no values when they are part of the keys."""

    k: GearBlock
    v: GearBlock | None


def gear_compress(
    x: jax.Array, kind: Kind, cfg: GEAR, rank: int, keep: jax.Array, exact_dtype: str = "float32"
) -> GearBlock:
    """Base, fit and outliers of a block.

    Args:
      x: float32 ``[B, K, n, d]``, n a multiple of 32.
      kind: "key" or "value", which decides the axes.
      cfg: the options.
      rank: r.
      keep: bool ``[B, n]``, tokens that count.
      exact_dtype: of outliers.
    """
    filtered, at, exact = set_apart(x, kind, cfg.sparsity, keep, exact_dtype)
    base = _round(filtered, kind, cfg, keep)
    return _fitted(GearBlock(base, None, None, at, exact), x, kind, cfg, rank, keep)


def gear_append(
    held: GearBlock, x: jax.Array, where: jax.Array, kind: Kind, cfg: GEAR, keep: jax.Array, exact_dtype: str
) -> GearBlock:
    """Stacked blocks with ``x`` compressed as the one numbered ``where``; its base is rounded by the GPU kernel.

    The fit needs what the base misses, so the codes that were just written are read again.
    """
    filtered, at, exact = set_apart(x, kind, cfg.sparsity, keep, exact_dtype)
    axis, group, joined = _layout(kind, cfg, x.shape)
    filtered = vectors_of(filtered, "value")[:, None] if joined else filtered
    bases = append_groups(held.base, filtered, keep, where, axis, bits=cfg.bits, group=group)
    base = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, where, keepdims=False), bases)
    block = _fitted(GearBlock(base, None, None, at, exact), x, kind, cfg, cfg.rank_decode, keep)
    put = jax.lax.dynamic_update_index_in_dim
    rest = jax.tree.map(lambda old, new: put(old, new, where, axis=0), held[1:], block[1:])
    return GearBlock(bases, *rest)


def _fitted(block, x, kind, cfg, rank, keep):
    """The block with a fit of what it misses."""
    if not rank:
        return block
    error = jnp.where(keep[:, None, :, None], x - gear_base(block, kind, cfg, x.shape[-1]), 0)
    a, b = low_rank(error, rank, cfg.iters, cfg.dtype)
    return block._replace(a=a, b=b)


def _layout(kind: Kind, cfg: GEAR, shape: tuple[int, ...]) -> tuple[Axis, int, bool]:
    """Axis and size of groups, and whether heads are joined before rounding."""
    _, heads, tokens, width = shape
    if cfg.base == "kcvt":
        return ("channel", tokens, False) if kind == "key" else ("token", heads * width, True)
    return ("channel" if kind == "key" and cfg.base == "kivi" else "token"), cfg.group, False


def _round(x, kind, cfg, keep):
    axis, group, joined = _layout(kind, cfg, x.shape)
    if joined:
        x = vectors_of(x, "value")[:, None]
    return pack_groups(x, axis, bits=cfg.bits, group=group, keep=keep, dtype=cfg.dtype)


def gear_base(block: GearBlock, kind: Kind, cfg: GEAR, width: int) -> jax.Array:
    """Rounded entries with the outliers in their places, float32 ``[B, K, n, width]``; the fit is not in it."""
    held = unpack_groups(block.base, _layout(kind, cfg, (1, 1, 1, 1))[0], bits=cfg.bits)
    if cfg.base == "kcvt" and kind == "value":
        heads = held.shape[-1] // width
        held = entries_of(held[:, 0], "value", heads)
    if block.at is None:
        return held
    assert block.exact is not None
    return put_back(held, block.at, block.exact, kind)


def gear_decompress(block: GearBlock, kind: Kind, cfg: GEAR, width: int) -> jax.Array:
    """All three parts together, float32 ``[B, K, n, width]``."""
    base = gear_base(block, kind, cfg, width)
    if block.a is None or block.b is None:
        return base
    return base + jnp.matmul(block.a.astype(jnp.float32), jnp.swapaxes(block.b.astype(jnp.float32), -1, -2))
