"""The step through Pallas' Triton backend: codes are read, decoded, moved, coded again and written by one program.

A block stays in registers from its old codes to its new ones. Both maps and the midpoints between their values are four
kilobytes that stay in the first-level cache; a value becomes a code by a binary search among the midpoints, eight loads
from there, whose first ones are the same for all threads.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.blockwise_adam import arithmetic
from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper, Moments


def _searched(ref, table: int, y: jax.Array) -> jax.Array:
    """How many midpoints of a table are below ``y``: the code of the nearest value."""
    code = jnp.zeros(y.shape, jnp.int32)
    for stride in (128, 64, 32, 16, 8, 4, 2, 1):
        middle = triton.load(ref, jnp.int32(table * 256 + stride - 1) + code)
        code = jnp.where(middle < y, code + jnp.int32(stride), code)
    return code


def _largest(a: jax.Array) -> jax.Array:
    """Largest magnitude of each row; NaN where there is one."""
    return lax.bitcast_convert_type(jnp.max(triton.magnitude(a), axis=1), jnp.float32)


def blockwise_adam_triton(
    g: jax.Array,
    moments: Moments,
    numbers: jax.Array,
    tables: jax.Array,
    p: jax.Array | None,
    layout: AdamLayout,
    config: BlockConfig,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, Moments]:
    """The step of one array: its direction in float32, or the moved parameter, and the moments coded again."""
    rows, last, width = layout.rows(g.shape)
    count = -(-last // width)
    total = rows * count
    wide = 1 << (width - 1).bit_length()
    many = max(1, config.values // wide)
    even = last % width == 0

    def kernel(g_ref, m_ref, m_scale_ref, v_ref, v_scale_ref, numbers_ref, tables_ref, *refs):
        out_ref, *written = refs[-5:]
        block = triton.program() * jnp.int32(many) + triton.iota(many)
        lane = triton.iota(wide)[None, :]
        exists = None if total % many == 0 else block < jnp.int32(total)
        inside = None if exists is None else exists[:, None]
        if even:
            place = block[:, None] * jnp.int32(width) + lane
        else:
            row, nth = lax.div(block, jnp.int32(count)), lax.rem(block, jnp.int32(count))
            col = nth[:, None] * jnp.int32(width) + lane
            place = row[:, None] * jnp.int32(last) + col
            within = col < jnp.int32(last)
            inside = within if inside is None else inside & within
        if wide != width:
            within = lane < jnp.int32(width)
            inside = within if inside is None else inside & within
        number = [triton.load(numbers_ref, jnp.int32(i)) for i in range(10)]
        hyper, rests = Hyper(*number[:8]), tuple(number[8:])

        def decoded(codes_ref, scale_ref, table):
            code = triton.load(codes_ref, place, mask=inside).astype(jnp.int32)
            scale = triton.load(scale_ref, block, mask=exists)
            return triton.load(tables_ref, jnp.int32(table * 256) + code) * scale[:, None]

        grad = triton.load(g_ref, place, mask=inside).astype(jnp.float32)
        fresh = arithmetic.step(
            grad, decoded(m_ref, m_scale_ref, 0), decoded(v_ref, v_scale_ref, 2), hyper, rests, layout
        )
        result = fresh.direction
        if p is not None:
            old = triton.load(refs[0], place, mask=inside).astype(jnp.float32)
            result = arithmetic.moved(old, fresh.direction, hyper, layout, grad)
        triton.store(out_ref, result, place, mask=inside)
        for nth, value in enumerate((fresh.m, fresh.v)):
            # Lanes beyond the array hold what the map gives for code 0.
            value = value if inside is None else jnp.where(inside, value, 0.0)
            kept, divisor, usable = arithmetic.scale_of(_largest(value))
            y = value / divisor[:, None]
            code = _searched(tables_ref, 2 * nth + 1, y)
            zero = layout.zero("v_map" if nth else "m_map")
            if layout.keep_sign and zero > 0:
                code = arithmetic.signed(code, y, usable[:, None], zero)
            triton.store(written[2 * nth], code, place, mask=inside)
            triton.store(written[2 * nth + 1], kept, block, mask=exists)

    flat = [a.reshape(-1) for a in (g, *moments, numbers, tables)]
    kinds = [(g.size, jnp.float32 if p is None else p.dtype)] + 2 * [(g.size, jnp.uint8), (total, jnp.float32)]
    out = triton.launch(
        kernel,
        blocks=math.ceil(total / many),
        out_shape=[triton.result((size,), dtype, g) for size, dtype in kinds],
        name="blockwise_adam" if p is not None else "blockwise_adam_direction",
        warps=config.warps,
        stages=1,
        interpret=interpret,
    )(*flat, *([] if p is None else [p.reshape(-1)]))
    shapes = (a.shape for a in moments)
    return out[0].reshape(g.shape), Moments(*(a.reshape(shape) for a, shape in zip(out[1:], shapes, strict=True)))
