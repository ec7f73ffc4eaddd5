"""Keys or values in few-bit codes with a scale and a low end per group, and the product with them.

``x ~ low + scale * code``. Groups run along tokens inside a channel ("channel") or along channels inside a token
("token"). Codes are packed along tokens, so one shift of a word gives a run of tokens.

Letters: B batch, K key heads, S tokens, d channels, g group.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.numerics import bitpack
from compressjax.numerics.grids import stored

Axis = Literal["channel", "token"]


class Packed(NamedTuple):
    """Rounded keys or values of S tokens.

    Attributes:
      codes: uint32 ``[B, K, S * bits / 32, d]``, see ``numerics.bitpack``, in tiles of `tile_of` tokens.
      scale: 16-bit float ``[B, K, S / g, d]`` ("channel") or ``[B, K, S, d / g]`` ("token").
      low: the same, value of code 0; None when symmetric.
    """

    codes: jax.Array
    scale: jax.Array
    low: jax.Array | None


def tile_of(tokens: int) -> int:
    """Tokens packed together."""
    return bitpack.pack_tile(tokens)


def grouped(x: jax.Array, axis: Axis, group: int) -> jax.Array:
    """``[B, K, S, d]`` with the group's values on the last axis."""
    *lead, tokens, width = x.shape
    if axis == "token":
        return x.reshape(*lead, tokens, width // group, group)
    return jnp.swapaxes(x.reshape(*lead, tokens // group, group, width), -1, -2)


def ungrouped(x: jax.Array, axis: Axis, group: int) -> jax.Array:
    """Inverse of `grouped`."""
    if axis == "token":
        return x.reshape(*x.shape[:-2], x.shape[-2] * group)
    x = jnp.swapaxes(x, -1, -2)
    return x.reshape(*x.shape[:-3], x.shape[-3] * group, x.shape[-1])


def pack_groups(
    x: jax.Array,
    axis: Axis,
    *,
    bits: int,
    group: int,
    sym: bool = False,
    keep: jax.Array | None = None,
    tile: int | None = None,
    dtype: str = "float16",
) -> Packed:
    """Rounds groups to their own range.

    Asymmetric: ``scale = (max - min) / (2^b - 1)``, ``code = round((x - min) / scale)``; symmetric: codes
    ``-(2^(b-1)-1) .. 2^(b-1)-1`` around zero. Scale and low end are rounded to ``dtype`` before they are used. A group
    of equal values keeps that value, and one that holds NaN is NaN: scale and low end are, and its codes are 0.

    Args:
      x: ``[B, K, S, d]``, S a multiple of 32 (and of ``group`` along channels), d one of ``group`` along tokens.
      axis: along which axis groups differ.
      bits: code width, 1 to 8.
      group: values that share a scale.
      sym: no stored low end.
      keep: bool ``[B, S]`` or ``[B, K, S]``, tokens that count; the others widen no range. None for all.
      tile: tokens packed together; None for `tile_of` all of them.
      dtype: of scales and low ends.
    """
    values = grouped(x.astype(jnp.float32), axis, group)
    counts = None
    if keep is not None:
        keep = keep[:, None] if keep.ndim == 2 else keep
        counts = grouped(jnp.broadcast_to(keep[..., None], x.shape), axis, group)

    def over(reduce, a, other):
        return reduce(a if counts is None else jnp.where(counts, a, other), axis=-1)

    # Least and largest may pass over NaN, in XLA on a CPU as on a GPU, and the group would come out finite.
    lost = over(jnp.any, jnp.isnan(values), False)
    if sym:
        middle, low = 2 ** (bits - 1), None
        least, most = 1 - middle, middle - 1
        peak = over(jnp.max, jnp.abs(values), 0)
        scale = stored(jnp.where(peak == 0, 1, peak) / most, dtype)
    else:
        least, most, middle = 0, 2**bits - 1, 0
        low, high = over(jnp.min, values, jnp.inf), over(jnp.max, values, -jnp.inf)
        none = high < low
        low, high = jnp.where(none, 0, low), jnp.where(none, 0, high)
        largest = jnp.float32(jnp.finfo(dtype).max)
        low = jnp.clip(low, -largest, largest).astype(dtype).astype(jnp.float32)
        span = jnp.maximum(high - low, 0)
        scale = stored(jnp.where(span == 0, 1, span) / most, dtype)
        low = jnp.where(lost, jnp.nan, low)
        values = values - low[..., None]
    scale = jnp.where(lost, jnp.nan, scale)
    steps = values / scale[..., None]
    codes = jnp.where(jnp.isnan(steps), 0, jnp.clip(jnp.round(steps), least, most) + middle)
    codes = ungrouped(codes, axis, group)
    return Packed(
        bitpack.pack(codes, bits, tile or tile_of(x.shape[-2])),
        scale.astype(dtype),
        None if low is None else low.astype(dtype),
    )


def unpack_groups(packed: Packed, axis: Axis, *, bits: int, tile: int | None = None) -> jax.Array:
    """Values of a `Packed`, float32 ``[B, K, S, d]``."""
    tokens = packed.codes.shape[-2] * 32 // bits
    codes = bitpack.unpack(packed.codes, bits, tile or tile_of(tokens), tokens, dtype=jnp.float32)
    width = codes.shape[-1]
    group = tokens // packed.scale.shape[-2] if axis == "channel" else width // packed.scale.shape[-1]
    scale = packed.scale.astype(jnp.float32)[..., None]
    if packed.low is None:
        values = scale * (grouped(codes, axis, group) - 2 ** (bits - 1))
    else:
        values = packed.low.astype(jnp.float32)[..., None] + scale * grouped(codes, axis, group)
    return ungrouped(values, axis, group)
