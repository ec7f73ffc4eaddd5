"""Entries of packed keys and values held exactly: what they add to scores and sums of a kernel that knows none.

The kernel reads every entry as it was rounded. An outlier's exact value differs from that by a *miss*; misses of keys
times queries are added to scores, and misses of values times weights to sums. Letters as in `packed_attention`; m
outliers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.packed import Axis, Packed, tile_of
from compressjax.numerics import bitpack


class Spots(NamedTuple):
    """Head, token and channel of outliers, int32 arrays that broadcast to ``[C, B, ...]``, and their values."""

    head: jax.Array
    token: jax.Array
    channel: jax.Array
    exact: jax.Array


def key_spots(at: jax.Array, exact: jax.Array) -> Spots:
    """Outliers of keys, ``at [C, B, K, d, m]`` along tokens."""
    heads, width = at.shape[2:4]
    head = jnp.arange(heads, dtype=jnp.int32).reshape(1, 1, heads, 1, 1)
    return Spots(head, at.astype(jnp.int32), jnp.arange(width, dtype=jnp.int32).reshape(1, 1, 1, width, 1), exact)


def value_spots(at: jax.Array, exact: jax.Array, width: int) -> Spots:
    """Outliers of values, ``at [C, B, n, m]`` along heads and channels."""
    at = at.astype(jnp.int32)
    token = jnp.arange(at.shape[2], dtype=jnp.int32).reshape(1, 1, -1, 1)
    return Spots(at // width, token, at % width, exact)


def _texts(spots: Spots) -> tuple[jax.Array, jax.Array]:
    """Block and row of each outlier, as arrays that broadcast."""
    shape = spots.exact.shape
    rest = (1,) * (len(shape) - 2)
    blocks, rows = (jnp.arange(length, dtype=jnp.int32) for length in shape[:2])
    return blocks.reshape(-1, 1, *rest), rows.reshape(1, -1, *rest)


def misses(packed: Packed, axis: Axis, bits: int, tokens: int, spots: Spots) -> jax.Array:
    """Exact values less the rounded ones in their places, float32, of the shape of ``spots.exact``."""
    block, row = _texts(spots)
    head, token, channel, exact = spots
    tile = tile_of(tokens)
    within, first, code = token % tile, 0, jnp.zeros((), jnp.uint32)
    for width, offset in bitpack.planes(bits):
        height = tile * width // 32
        word = token // tile * (tile * bits // 32) + first + within % height
        field = packed.codes[block, row, head, word, channel] >> (within // height * width).astype(jnp.uint32)
        code = code | ((field & jnp.uint32(2**width - 1)) << jnp.uint32(offset))
        first += height
    if axis == "channel":
        group = (token // (tokens // packed.scale.shape[-2]), channel)
    else:
        group = (token, channel // (packed.codes.shape[-1] // packed.scale.shape[-1]))
    scale = packed.scale[block, row, head, *group].astype(jnp.float32)
    if packed.low is None:
        rounded = scale * (code.astype(jnp.float32) - 2 ** (bits - 1))
    else:
        rounded = packed.low[block, row, head, *group].astype(jnp.float32) + scale * code.astype(jnp.float32)
    return exact.astype(jnp.float32) - rounded


def score_bias(q: jax.Array, missed: jax.Array, at: jax.Array, tokens: int) -> jax.Array:
    """What misses of keys add to scores, float32 ``[C, B, K, G, n]``.

    Args:
      q: ``[B, K, G, 1, d]``.
      missed, at: ``[C, B, K, d, m]``.
      tokens: n.
    """

    def one_head(q, missed, at):
        parts = q.astype(jnp.float32)[:, :, None] * missed[None]
        return jnp.zeros((q.shape[0], tokens), jnp.float32).at[:, at.astype(jnp.int32)].add(parts)

    over_rows_and_heads = jax.vmap(jax.vmap(one_head))
    return jax.vmap(over_rows_and_heads, in_axes=(None, 0, 0))(q[..., 0, :], missed, at)


def sums_of_misses(weights: jax.Array, missed: jax.Array, spots: Spots, width: int) -> jax.Array:
    """What misses of values add to sums, float32 ``[B, K, G, width]``.

    Args:
      weights: ``[C, B, K, G, n]``.
      missed: ``[C, B, n, m]``.
      spots: of the values.
      width: e.
    """
    block, row = _texts(spots)
    _, batch, heads, groups, _ = weights.shape
    seen = weights[block, row, spots.head, :, spots.token]  # [C, B, n, m, G]
    sums = jnp.zeros((batch, heads, width, groups), jnp.float32)
    sums = sums.at[row, spots.head, spots.channel].add(seen * missed[..., None])
    return jnp.swapaxes(sums, -1, -2)
