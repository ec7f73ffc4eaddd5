"""The same in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backends.random_bits import centred_uniforms
from pallas_kernels.quantize_pack import rounding
from pallas_kernels.quantize_pack.layout import Packed, PackLayout


def _in_tiles(x: jax.Array, layout: PackLayout) -> jax.Array:
    """float32 ``[lead, tiles, fields, run, cols]``; a vector has one column."""
    x = x.astype(jnp.float32)
    if layout.along == "flat":
        blocks = -(-x.size // layout.block)
        lacks = (0, blocks * layout.block - x.size)
        x = jnp.pad(x.reshape(-1), lacks, mode="constant" if layout.kind == "norm" else "edge").reshape(1, -1, 1)
    *_, rows, cols = x.shape
    packing = layout.packing
    return x.reshape(-1, rows // layout.tile, packing.fields, packing.run, cols)


def _rows(tiles: jax.Array) -> jax.Array:
    lead, count, fields, run, cols = tiles.shape
    return tiles.reshape(lead, count * fields * run, cols)


def _grouped(rows: jax.Array, layout: PackLayout) -> tuple[jax.Array, int]:
    """Rows with an axis along blocks, and which it is."""
    lead, count, cols = rows.shape
    if layout.along == "cols":
        return rows.reshape(lead, count, cols // layout.block, layout.block), 3
    return rows.reshape(lead, count // layout.block, layout.block, cols), 2


def quantize_pack_xla(x: jax.Array, key: jax.Array | None, layout: PackLayout) -> Packed:
    """Words and scales of an array."""
    tiles = _in_tiles(x, layout)
    grouped, axis = _grouped(_rows(tiles), layout)
    if layout.kind == "norm":
        extremes = None, jnp.sum(grouped * grouped, axis=axis)
    elif layout.kind == "absmax":
        extremes = None, jnp.max(jnp.abs(grouped), axis=axis)
    else:
        extremes = jnp.min(grouped, axis=axis), jnp.max(grouped, axis=axis)
    scale, low = rounding.statistics(*extremes, layout)
    lead, count, fields, run, cols = tiles.shape
    noise = None
    if key is not None:
        number = jnp.arange(lead * count * run * cols, dtype=jnp.uint32).reshape(lead, count, run, cols)
        draws = centred_uniforms((key[0], key[1]), number, fields)
        noise = jnp.stack(draws, axis=2).reshape(grouped.shape)
    least = None if low is None else jnp.expand_dims(low, axis)
    inverse = jnp.expand_dims(rounding.inverse_unit(scale, layout), axis)
    code = rounding.codes(grouped, inverse, least, noise, layout).reshape(tiles.shape)
    shift = (jnp.arange(fields, dtype=jnp.uint32) * jnp.uint32(layout.bits)).reshape(1, 1, -1, 1, 1)
    words = jnp.sum(code << shift, axis=2, dtype=jnp.uint32)
    shapes = layout.shapes(x.shape)
    kept = [None if a is None else a.astype(layout.scale_dtype).reshape(shapes[1]) for a in (scale, low)]
    return Packed(words.reshape(shapes[0]), kept[0], kept[1])  # pyright: ignore[reportArgumentType]


def unpack_dequantize_xla(packed: Packed, shape: tuple[int, ...], dtype: Any, layout: PackLayout) -> jax.Array:
    """The array of a shape that was packed, in ``dtype``."""
    flat = layout.along == "flat"
    cols = 1 if flat else shape[-1]
    packing = layout.packing
    lead = 1 if flat else math.prod(shape[:-2])
    words = packed.words.reshape(lead, -1, 1, packing.run, cols)
    shift = (jnp.arange(packing.fields, dtype=jnp.uint32) * jnp.uint32(layout.bits)).reshape(1, 1, -1, 1, 1)
    code, axis = _grouped(_rows((words >> shift) & jnp.uint32(2**layout.bits - 1)), layout)

    def spread(a):
        return jnp.expand_dims(a.astype(jnp.float32).reshape(code.shape[:axis] + code.shape[axis + 1 :]), axis)

    unit = rounding.unit_of(spread(packed.scale), layout)
    found = rounding.values(code, unit, None if packed.low is None else spread(packed.low), layout)
    return found.reshape(-1)[: math.prod(shape)].reshape(shape).astype(dtype)
