"""Both directions through Pallas' Triton backend: values are read once, words once, and nothing stands in between.

The blocks of a program stay in registers from the scale to the codes. Fields of a word come from consecutive runs of
memory, so packing is a shift and an OR in each lane and moves nothing between lanes.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.random_bits import centred_uniforms
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.quantize_pack import rounding
from pallas_kernels.quantize_pack.lanes import FlatLanes, MatrixLanes, blocks_of_lanes
from pallas_kernels.quantize_pack.layout import Packed, PackLayout


def _lanes(shape, layout: PackLayout, width: int) -> FlatLanes | MatrixLanes:
    if layout.along == "flat":
        return FlatLanes(layout, math.prod(shape), width)
    return MatrixLanes(layout, shape[-2], shape[-1], width)


def _flatter(a: jax.Array, layout: PackLayout) -> jax.Array:
    """A vector, or one leading axis."""
    return a.reshape(-1) if layout.along == "flat" else a.reshape(-1, *a.shape[-2:])


def _extreme(fields: list[jax.Array], lanes, layout: PackLayout) -> tuple[Any, jax.Array]:
    """Least and largest of the blocks of a section, or what takes their place in other kinds."""

    def over(combine, reduce, each):
        together, axis = lanes.split(functools.reduce(combine, map(each, fields)))
        return reduce(together, axis=axis)

    if layout.kind == "norm":
        return None, over(lax.add, jnp.sum, lax.square)
    peak = lax.bitcast_convert_type(over(jnp.maximum, jnp.max, triton.magnitude), jnp.float32)
    if layout.kind == "absmax":
        return None, peak
    high = over(jnp.maximum, jnp.max, lambda a: a)
    # Least and largest pass over NaN on a GPU.
    return over(jnp.minimum, jnp.min, lambda a: a), jnp.where(jnp.isnan(peak), peak, high)


def quantize_pack_triton(
    x: jax.Array, key: jax.Array | None, layout: PackLayout, config: BlockConfig, *, interpret: bool = False
) -> Packed:
    """Words and scales of an array; rounded at random with a ``key`` of two words."""
    width, programs = blocks_of_lanes(x.shape, layout, config.values)
    lanes = _lanes(x.shape, layout, width)
    ranged = layout.kind == "minmax"
    bits, count = layout.bits, layout.packing.fields

    def kernel(x_ref, *refs):
        *seed_ref, words_ref, scale_ref = refs[: len(refs) - ranged]
        place, exists, number = lanes.words()
        noise: list[Any] = [None] * count
        if key is not None:
            seed = triton.load(seed_ref[0], jnp.int32(0)), triton.load(seed_ref[0], jnp.int32(1))
            noise = list(centred_uniforms(seed, number.astype(jnp.uint32), count))
        words = jnp.zeros(number.shape, jnp.uint32)
        for nth, section in enumerate(lanes.sections):
            fields = [lanes.load(x_ref, field) for field in section]
            scale, low = rounding.statistics(*_extreme(fields, lanes, layout), layout)
            where, inside = lanes.scales(nth)
            triton.store(scale_ref, scale, *where, mask=inside)
            if low is not None:
                triton.store(refs[-1], low, *where, mask=inside)
            inverse = rounding.inverse_unit(scale, layout)
            for field, value in zip(section, fields, strict=True):
                parted, axis = lanes.split(value)
                unit = jnp.expand_dims(inverse, axis)
                least = None if low is None else jnp.expand_dims(low, axis)
                added = noise[field] if noise[field] is None else lanes.split(noise[field])[0]
                code = rounding.codes(parted, unit, least, added, layout).reshape(number.shape)
                words = words | (code << jnp.uint32(field * bits))
        triton.store(words_ref, words, *place, mask=exists)

    flat = _flatter(x, layout)
    words, scales = layout.shapes(x.shape)
    one = (lambda s: s) if layout.along == "flat" else (lambda s: (math.prod(s[:-2]), *s[-2:]))
    kinds = [(words, jnp.uint32), *[(scales, layout.scale_dtype)] * (2 if ranged else 1)]
    out = triton.launch(
        kernel,
        blocks=programs,
        out_shape=[triton.result(one(shape), dtype, x) for shape, dtype in kinds],
        name=f"quantize_pack_{layout.kind}_w{bits}",
        warps=config.warps,
        stages=1,
        interpret=interpret,
    )(flat, *([] if key is None else [key]))
    return Packed(out[0].reshape(words), out[1].reshape(scales), out[2].reshape(scales) if ranged else None)


def unpack_dequantize_triton(
    packed: Packed,
    shape: tuple[int, ...],
    dtype: Any,
    layout: PackLayout,
    config: BlockConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The array of a shape that was packed, in ``dtype``."""
    width, programs = blocks_of_lanes(shape, layout, config.values)
    lanes = _lanes(shape, layout, width)

    def kernel(words_ref, scale_ref, *refs):
        place, exists, number = lanes.words()
        words = triton.load(words_ref, *place, mask=exists)
        for nth, section in enumerate(lanes.sections):
            where, inside = lanes.scales(nth)
            unit = rounding.unit_of(triton.load(scale_ref, *where, mask=inside), layout)
            low = None
            if layout.kind == "minmax":
                low = triton.load(refs[0], *where, mask=inside).astype(jnp.float32)
            for field in section:
                code, axis = lanes.split((words >> jnp.uint32(field * layout.bits)) & jnp.uint32(2**layout.bits - 1))
                least = None if low is None else jnp.expand_dims(low, axis)
                value = rounding.values(code, jnp.expand_dims(unit, axis), least, layout)
                lanes.store(refs[-1], value.reshape(number.shape), field)

    flat = (math.prod(shape),) if layout.along == "flat" else (math.prod(shape[:-2]), *shape[-2:])
    out = triton.launch(
        kernel,
        blocks=programs,
        out_shape=triton.result(flat, dtype, packed.words),
        name=f"unpack_dequantize_{layout.kind}_w{layout.bits}",
        warps=config.warps,
        stages=1,
        interpret=interpret,
    )(*(_flatter(a, layout) for a in packed if a is not None))
    return out.reshape(shape)
