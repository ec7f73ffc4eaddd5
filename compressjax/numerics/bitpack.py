"""Integer codes of 1 to 8 bits packed into 32-bit words with no bit wasted.

A code of ``b`` bits is cut into planes whose widths are powers of two (3 = 2 + 1, 5 = 4 + 1), because only such widths
divide a word. Rows are packed in tiles of ``tile`` rows. Inside a tile, the plane of width ``w`` takes ``tile*w/32``
words, and field ``j`` of word ``k`` holds row ``k + j * tile*w/32``: one shift and one mask of the words give a
contiguous run of rows, which is what a matrix-unit kernel wants to read. 32 codes take ``b`` words at every ``b``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.numerics.one_equation import one_equation

TILES = (256, 128, 64, 32)


def planes(bits: int) -> tuple[tuple[int, int], ...]:
    """Cuts a code into fields of power-of-two width.

    Args:
      bits: code width, 1 to 8.

    Returns:
      ``((width, offset), ...)``, widest first; offsets count from the lowest bit.

    Raises:
      ValueError: when ``bits`` is not in 1..8.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits must be in 1..8, got {bits}")
    out, offset = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            out.append((width, offset))
            offset += width
    return tuple(out)


def pack_tile(rows: int) -> int:
    """Largest tile height that adds no padding beyond the next multiple of 32 rows."""
    padded = -(-rows // 32) * 32
    return next(t for t in TILES if padded % t == 0)


def packed_rows(rows: int, bits: int, tile: int) -> int:
    """Number of 32-bit words along the packed axis for ``rows`` codes."""
    return -(-rows // tile) * tile * bits // 32


def pack(codes: jax.Array, bits: int, tile: int) -> jax.Array:
    """Packs codes along their second-last axis.

    Args:
      codes: integers ``[..., rows, cols]``; values above ``2**bits - 1`` are saturated, since a wrapped code would
        land at the far end of the grid.
      bits: code width, 1 to 8.
      tile: rows packed together, a multiple of 32.

    Returns:
      uint32 ``[..., ceil(rows/tile)*tile*bits/32, cols]``.

    Raises:
      ValueError: for ``bits`` outside 1..8, or a tile that is not a positive multiple of 32.
    """
    if tile < 32 or tile % 32:
        raise ValueError(f"tile must be a positive multiple of 32, got {tile}")
    *lead, rows, cols = codes.shape
    padded = -(-rows // tile) * tile
    codes = jnp.clip(codes.astype(jnp.int32), 0, 2**bits - 1).astype(jnp.uint32)
    codes = jnp.pad(codes, [(0, 0)] * len(lead) + [(0, padded - rows), (0, 0)])
    words = []
    for width, offset in planes(bits):
        fields = 32 // width
        field = (codes >> jnp.uint32(offset)) & jnp.uint32(2**width - 1)
        field = field.reshape(*lead, padded // tile, fields, tile // fields, cols)
        shift = (jnp.arange(fields, dtype=jnp.uint32) * jnp.uint32(width)).reshape(fields, 1, 1)
        shift = jnp.expand_dims(shift, tuple(range(len(lead) + 1)))
        words.append(jnp.sum(field << shift, axis=-3, dtype=jnp.uint32))
    return jnp.concatenate(words, axis=-2).reshape(*lead, padded * bits // 32, cols)


def unpack(
    words: jax.Array, bits: int, tile: int, count: int, *, axis: int = -2, dtype: jax.typing.DTypeLike = jnp.uint8
) -> jax.Array:
    """Inverse of :func:`pack`.

    Args:
      words: uint32, ``packed`` of them along ``axis``.
      bits, tile: as given to :func:`pack`.
      count: number of codes along the packed axis, padding excluded.
      axis: negative number of the packed axis.
      dtype: of the result.

    Returns:
      Codes, ``count`` along ``axis`` and else as ``words``.
    """
    return _unpack(words, bits=bits, tile=tile, count=count, axis=axis, dtype=np.dtype(dtype))


def _unpack_formula(words, *, bits, tile, count, axis, dtype):
    axis += words.ndim
    lead, packed, rest = words.shape[:axis], words.shape[axis], words.shape[axis + 1 :]
    per_tile = tile * bits // 32
    tiles = packed // per_tile
    words = jax.lax.reshape(words, (*lead, tiles, per_tile, *rest))
    parts, at = [], 0
    for width, offset in planes(bits):
        fields, height = 32 // width, tile * width // 32
        plane = jax.lax.slice_in_dim(words, at, at + height, axis=axis + 1)
        at += height
        shape = (*lead, tiles, fields, height, *rest)
        spread = jax.lax.broadcast_in_dim(plane, shape, (*range(axis + 1), *range(axis + 2, len(shape))))
        shift = jax.lax.broadcast_in_dim(np.arange(0, 32, width, dtype=np.uint32), shape, (axis + 1,))
        field = jax.lax.bitwise_and(jax.lax.shift_right_logical(spread, shift), np.uint32(2**width - 1))
        field = jax.lax.reshape(field, (*lead, tiles * tile, *rest))
        parts.append(jax.lax.shift_left(field, np.uint32(offset)) if offset else field)
    codes = jax.lax.convert_element_type(functools.reduce(jax.lax.bitwise_or, parts), dtype)
    return codes if tiles * tile == count else jax.lax.slice_in_dim(codes, 0, count, axis=axis)


def _unpacked_shape(words, *, count, axis, **_):
    shape = list(words.shape)
    shape[axis] = count
    return shape


_unpack = one_equation("unpack", _unpack_formula, _unpacked_shape, lambda *, dtype, **_: dtype)


def unpack_rows(words: jax.Array, bits: int, tile: int, ids: jax.Array) -> jax.Array:
    """Codes of single rows, without unpacking the rest.

    Args:
      words: uint32 ``[packed, cols]``.
      bits, tile: as given to :func:`pack`.
      ids: integer row numbers of any shape.

    Returns:
      uint8 ``[*ids.shape, cols]``.
    """
    per_tile = tile * bits // 32
    within = ids % tile
    base = ids // tile * per_tile
    codes, at = jnp.zeros((), jnp.uint32), 0
    for width, offset in planes(bits):
        height = tile * width // 32
        word = jnp.take(words, base + at + within % height, axis=0)
        shift = ((within // height) * width).astype(jnp.uint32)[..., None]
        field = (word >> shift) & jnp.uint32(2**width - 1)
        codes = field if offset == 0 else codes | (field << jnp.uint32(offset))
        at += height
    return codes.astype(jnp.uint8)
