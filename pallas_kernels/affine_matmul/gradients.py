"""Gradients of the product through Pallas' Triton backend: for the activations, and for scale and zero.

With ``D = x^T y_bar`` (never built): ``x_bar = y_bar w^T``; ``scale_bar[g] = sum over the rows k of g of
(code_k - zero_g) D_k``; ``zero_bar[g] = -scale_g sum_k D_k``, and ``sum_k D_k`` is a product of group sums of ``x``.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.affine_matmul.triton import centred, load_zero
from pallas_kernels.affine_matmul.xla import group_sums, unpacked_zero
from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.packed_fields import Chunk
from pallas_kernels.backends.packed_product import fields_share_groups
from pallas_kernels.product_config import ProductConfig, least_tiles

# Fields that one program keeps sums for: more would not fit its registers, fewer would read the words more often.
_FIELDS = 2


def activation_config(m: int, layout: AffineLayout, dtype: jnp.dtype) -> ProductConfig:
    """Blocks of :func:`activation_gradient`: as many rows as there are, 64 outputs a step."""
    block_n = 64 if dtype != jnp.float32 else 32
    block_m = 16 if m <= 16 else 64 if dtype != jnp.float32 else 32
    tiles = least_tiles(layout.packing.run)
    return ProductConfig(block_m=block_m, block_n=block_n, tiles=tiles, splits=1, warps=4, stages=2)


def activation_gradient(
    y_bar: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    config: ProductConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``y_bar @ w.T`` for ``y_bar [m, cols]``, in its dtype; weights are rounded to that dtype as a dense product does.

    A program makes two fields of a chunk of inputs for ``block_m`` rows and walks over ``block_n`` outputs at a time.
    """
    m = y_bar.shape[0]
    chunk = Chunk(layout.packing, config.tiles)
    block_m, block_n, fields = config.block_m, config.block_n, _FIELDS
    grid = (chunk.total, layout.packing.fields // fields, math.ceil(m / block_m))
    shared = fields_share_groups(layout.packing, layout.group, chunk.count)

    def kernel(y_ref, codes_ref, scale_ref, *rest):
        zero_ref, out_ref = rest if len(rest) == 2 else (None, rest[0])
        index, part, at_m = triton.split_program(grid)
        row = at_m * jnp.int32(block_m) + triton.iota(block_m)
        row_inside = None if m % block_m == 0 else (row < jnp.int32(m))[:, None]

        def step(at_n, totals):
            col = at_n * jnp.int32(block_n) + triton.iota(block_n)
            inside = None if layout.cols % block_n == 0 else col < jnp.int32(layout.cols)
            mask = row_inside
            if inside is not None:
                mask = inside[None, :] if mask is None else mask & inside[None, :]
            y = triton.load(y_ref, row[:, None], col[None, :], mask=mask)
            words = chunk.load_words(codes_ref, index, col, inside)

            def term(nth):
                field = part * jnp.int32(fields) + jnp.asarray(nth, jnp.int32)
                depth = chunk.row_numbers(index, field)
                if shared:
                    start = index * jnp.int32(chunk.rows) + jnp.asarray(field * layout.packing.run, jnp.int32)
                    depth = jnp.reshape(start, (1,))
                group = jnp.minimum(depth // jnp.int32(layout.group), jnp.int32(layout.groups - 1))
                scales = triton.load(
                    scale_ref, group[:, None], col[None, :], mask=None if inside is None else inside[None, :]
                ).astype(jnp.float32)
                zeros = load_zero(zero_ref, layout, group, col, inside)
                w = (centred(chunk.codes(words, field), zeros, layout.zero_kind) * scales).astype(y_bar.dtype)
                return triton.dot(y, w.T, interpret=interpret)

            return triton.unrolled_sums(totals, term, interpret=interpret)

        start = triton.zero_sums(fields, (block_m, chunk.height), interpret=interpret)
        totals = lax.fori_loop(0, math.ceil(layout.cols / block_n), step, start)
        for nth in range(fields):
            depth = chunk.row_numbers(index, part * jnp.int32(fields) + jnp.int32(nth))
            mask = row_inside
            if chunk.ragged:
                exists = (depth < jnp.int32(layout.rows))[None, :]
                mask = exists if mask is None else mask & exists
            triton.store(out_ref, totals[nth], row[:, None], depth[None, :], mask=mask)

    return triton.launch(
        kernel,
        blocks=math.prod(grid),
        out_shape=triton.result((m, layout.rows), y_bar.dtype, y_bar),
        name=f"affine_matmul_w{layout.bits}_dx",
        warps=config.warps,
        stages=config.stages,
        interpret=interpret,
    )(*[a for a in (y_bar, codes, scale, zero) if a is not None])


def scale_gradient(
    x: jax.Array,
    y_bar: jax.Array,
    codes: jax.Array,
    layout: AffineLayout,
    *,
    block_n: int = 64,
    block_m: int = 32,
    interpret: bool = False,
) -> jax.Array:
    """``sum over the rows k of a field of (code_k - 2**(bits-1)) D_k``, float32 ``[chunks, fields, cols]``.

    One program makes ``D`` for one field and ``block_n`` outputs, walking over the rows of ``x``, and keeps its sum.
    """
    m = x.shape[0]
    chunk = Chunk(layout.packing, least_tiles(layout.packing.run))
    fields, cols = layout.packing.fields, layout.cols
    grid = (chunk.total, fields, math.ceil(cols / block_n))

    def kernel(x_ref, y_ref, codes_ref, out_ref):
        index, field, at_n = triton.split_program(grid)
        col = at_n * jnp.int32(block_n) + triton.iota(block_n)
        inside = None if cols % block_n == 0 else col < jnp.int32(cols)
        depth = chunk.row_numbers(index, 0) + field * jnp.int32(layout.packing.run)

        def step(at_m, total):
            row = at_m * jnp.int32(block_m) + triton.iota(block_m)
            row_inside = None if m % block_m == 0 else row < jnp.int32(m)
            x_mask = None if row_inside is None else row_inside[:, None]
            if chunk.ragged:
                exists = (depth < jnp.int32(layout.rows))[None, :]
                x_mask = exists if x_mask is None else x_mask & exists
            y_mask = None if row_inside is None else row_inside[:, None]
            if inside is not None:
                y_mask = inside[None, :] if y_mask is None else y_mask & inside[None, :]
            a = triton.load(x_ref, row[:, None], depth[None, :], mask=x_mask)
            b = triton.load(y_ref, row[:, None], col[None, :], mask=y_mask)
            return total + triton.dot(a.T, b, interpret=interpret)

        start = jnp.zeros((chunk.height, block_n), jnp.float32)
        outer = lax.fori_loop(0, math.ceil(m / block_m), step, start)
        words = chunk.load_words(codes_ref, index, col, inside)
        code = centred(chunk.codes(words, field), float(2 ** (layout.bits - 1)), "none")
        mask = None if inside is None else inside
        triton.store(out_ref, jnp.sum(code * outer, axis=0), index, field, col, mask=mask)

    return triton.launch(
        kernel,
        blocks=math.prod(grid),
        out_shape=triton.result((chunk.total, fields, cols), jnp.float32, y_bar),
        name=f"affine_matmul_w{layout.bits}_dscale",
        warps=4,
        stages=2,
        interpret=interpret,
    )(x, y_bar, codes)


def group_gradients(
    x: jax.Array,
    y_bar: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of scale and of a real zero, float32 ``[groups, cols]``; needs fields that share groups."""
    chunk = Chunk(layout.packing, least_tiles(layout.packing.run))
    parts = scale_gradient(x, y_bar, codes, layout, interpret=interpret)
    outer = group_sums(x, layout).T @ y_bar.astype(jnp.float32)
    if chunk.count > 1 or layout.groups == 1:  # a chunk, or all of them, in one group
        parts = jnp.sum(parts, axis=1)
        span = chunk.rows
    else:
        parts = parts.reshape(-1, layout.cols)
        span = layout.packing.run
    many = max(1, layout.group // span) if layout.groups > 1 else parts.shape[0]
    parts = jnp.pad(parts, ((0, layout.groups * many - parts.shape[0]), (0, 0))) if layout.groups > 1 else parts
    summed = jnp.sum(parts.reshape(layout.groups, many, layout.cols), axis=1)
    centre = jnp.float32(2 ** (layout.bits - 1))
    shift = unpacked_zero(scale, zero, layout) - centre
    return summed - shift * outer, -scale.astype(jnp.float32) * outer
