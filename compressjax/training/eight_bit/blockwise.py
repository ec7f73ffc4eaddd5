"""Arrays as one byte per value and one float per block, by the nearest value of a map.

    a = max |x| over the block,    c = argmin_c |map[c] - x / a|,    x ~ map[c] a

Paper: Dettmers et al., 2022, arXiv 2110.02861, section 2.1. Departures: a block whose largest magnitude is zero, or
below the smallest normal float32, decodes to zeros where the reference divides 0 by 0; blocks may lie inside the last
axis, so that codes and scales are sharded as the array is.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from compressjax.training.eight_bit.code_maps import checked_map

AxisMode = Literal["flat", "last"]
_SMALLEST = float(np.finfo(np.float32).tiny)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockQ:
    """An array as codes and block scales.

    Attributes:
      codes: uint8, of the array's shape.
      absmax: float32 scale of each block: ``[ceil(size / block)]`` in mode "flat", ``[..., ceil(d / block)]`` in mode
        "last".
      block_size: values in a block; the last block of a row, or of the array, may be shorter.
      axis_mode: "flat" cuts the ravelled array, "last" cuts its last axis.
    """

    codes: jax.Array
    absmax: jax.Array
    block_size: int = dataclasses.field(metadata={"static": True})
    axis_mode: AxisMode = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape


def quantize_blockwise(
    x: jax.Array,
    code: np.ndarray,
    block_size: int = 256,
    *,
    axis_mode: AxisMode = "flat",
    key: jax.Array | None = None,
    keep_sign: bool = False,
) -> BlockQ:
    """Rounds an array to bytes.

    Args:
      x: floating, any shape.
      code: the map, float32 ``[256]``, sorted, with 0, within [-1, 1]. With a map that has no negative values,
        negative ``x`` becomes 0.
      block_size: values that share a scale.
      axis_mode: where blocks lie.
      key: rounds at random to one of the two neighbours, with their mean at ``x``; None rounds to the nearest, ties
        to the lower code.
      keep_sign: a negative value never becomes 0 but the least negative value of the map, as the reference has it for
        first moments. Rounding at random has no use for it: its mean keeps the sign.

    Returns:
      Codes and scales. A NaN or an infinity makes its whole block NaN.

    Raises:
      TypeError: x is not floating.
      ValueError: a bad map, block size or mode.
    """
    values = checked_map(code)
    _check(x, block_size, axis_mode)
    zero = int(np.flatnonzero(values == 0)[0])
    least = zero - 1 if keep_sign and key is None and zero > 0 else zero
    return _quantize(x, values, _lower_middles(values), key, zero, least, block_size, axis_mode)


@functools.partial(jax.jit, static_argnames=("zero", "least", "block_size", "axis_mode"))
def _quantize(x, values, middles, key, zero, least, block_size, axis_mode):
    """``least`` is the code of negative values that round to ``zero``."""
    blocks = _blocks(x.astype(jnp.float32), block_size, axis_mode)
    largest = jnp.max(jnp.abs(blocks), axis=-1, initial=0.0)
    # Denormals are flushed on most devices, so dividing by one is dividing by zero.
    usable = ~(largest < _SMALLEST)
    absmax = jnp.where(usable, largest, 0.0)
    y = blocks / jnp.where(usable, largest, 1.0)[..., None]
    codes = _nearest(y, middles) if key is None else _random_neighbour(y, values, key)
    if least != zero:
        codes = jnp.where((y < 0) & (codes == zero) & usable[..., None], jnp.uint8(least), codes)
    return BlockQ(_unblocked(codes, x.shape, axis_mode), _scales(absmax, x.shape, axis_mode), block_size, axis_mode)


def dequantize_blockwise(
    q: BlockQ, code: np.ndarray, dtype: DTypeLike = jnp.float32, *, floor_zeros: bool = False
) -> jax.Array:
    """``map[codes] * absmax``, computed in float32.

    Args:
      q: codes and scales.
      code: the map they were made with.
      dtype: of the result.
      floor_zeros: reads a zero as the map's least positive value, so that a value that was rounded away stays positive.

    Returns:
      The array, of the codes' shape.
    """
    values = checked_map(code)
    if floor_zeros:
        values = np.where(values == 0, values[values > 0].min(), values)
    return _dequantize(q, values, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _dequantize(q: BlockQ, values: jax.Array, dtype) -> jax.Array:
    blocks = _blocks(jnp.take(values, q.codes.astype(jnp.int32), axis=0), q.block_size, q.axis_mode)
    scaled = blocks * q.absmax.reshape(blocks.shape[:-1])[..., None]
    return _unblocked(scaled, q.shape, q.axis_mode).astype(dtype)


def scale_shape(shape: tuple[int, ...], block_size: int, axis_mode: AxisMode) -> tuple[int, ...]:
    """Shape of ``absmax`` for an array of a shape."""
    if axis_mode == "flat":
        return (-(-int(np.prod(shape, dtype=np.int64)) // block_size),)
    *lead, last = shape or (1,)
    return (*lead, -(-last // block_size))


def _check(x, block_size: int, axis_mode: str) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating, got {x.dtype}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if axis_mode not in ("flat", "last"):
        raise ValueError(f"axis_mode must be 'flat' or 'last', got {axis_mode!r}")


def _blocks(x: jax.Array, block_size: int, axis_mode: AxisMode) -> jax.Array:
    """``[..., blocks, values]``; a short last block is filled with zeros, which change no maximum."""
    rows = x.reshape(-1) if axis_mode == "flat" or x.ndim == 0 else x
    *lead, last = rows.shape
    width = max(1, min(block_size, last))
    count = -(-last // width)
    rows = jnp.pad(rows, [(0, 0)] * len(lead) + [(0, count * width - last)])
    return rows.reshape(*lead, count, width)


def _unblocked(blocks: jax.Array, shape: tuple[int, ...], axis_mode: AxisMode) -> jax.Array:
    if axis_mode == "flat" or not shape:
        return blocks.reshape(-1)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)
    return blocks.reshape(*blocks.shape[:-2], -1)[..., : shape[-1]]


def _scales(absmax: jax.Array, shape: tuple[int, ...], axis_mode: AxisMode) -> jax.Array:
    return absmax.reshape(-1) if axis_mode == "flat" or not shape else absmax


def _lower_middles(values: np.ndarray) -> np.ndarray:
    """Midpoints of neighbours, rounded down to float32: no float32 then falls on the wrong side of one."""
    middles = (values[1:].astype(np.float64) + values[:-1]) / 2
    rounded = middles.astype(np.float32)
    return np.where(rounded > middles, np.nextafter(rounded, np.float32(-2)), rounded)


def _nearest(y: jax.Array, middles: jax.Array) -> jax.Array:
    return jnp.searchsorted(middles, y, side="left", method="scan_unrolled").astype(jnp.uint8)


def _random_neighbour(y: jax.Array, values: jax.Array, key: jax.Array) -> jax.Array:
    upper = jnp.clip(jnp.searchsorted(values, y, side="left", method="scan_unrolled"), 1, 255)
    low, high = values[upper - 1], values[upper]
    up = jax.random.uniform(key, y.shape) * (high - low) < y - low
    return jnp.where(up, upper, upper - 1).astype(jnp.uint8)
