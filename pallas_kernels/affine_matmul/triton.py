"""The product through Pallas' Triton backend: ``y = x @ w`` without ever building ``w`` in memory.

Each program makes a block of ``y``. It reads a few packed tiles at a time and multiplies one field of their words after
the other, for a field is a run of rows as it stands. Codes minus an integer zero are exact in every activation dtype,
so where all rows of a field share a group the scale is applied to the float32 product, once per group, and the
operands of the tensor cores are not rounded at all. Elsewhere each weight is scaled before it is multiplied.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.backends.packed_product import Step, fields_share_groups, fields_together, packed_product
from pallas_kernels.product_config import ProductConfig


def load_zero(zero_ref, layout: AffineLayout, groups: jax.Array, cols: jax.Array, inside: jax.Array | None):
    """Zeros of some groups, float32 ``[len(groups), len(cols)]``; a Python float when they are all the same."""
    if layout.zero_kind == "none":
        return float(2 ** (layout.bits - 1))
    mask = None if inside is None else inside[None, :]
    if layout.zero_kind == "real":
        return triton.load(zero_ref, groups[:, None], cols[None, :], mask=mask).astype(jnp.float32)
    packing = layout.zero_packing
    tile, within = cols // jnp.int32(packing.tile), cols % jnp.int32(packing.tile)
    code = None
    for width, offset, word in packing.planes:  # a plane of width p has p words in a tile of 32
        at = tile * jnp.int32(packing.words) + jnp.int32(word) + within % jnp.int32(width)
        shift = (within // jnp.int32(width) * jnp.int32(width)).astype(jnp.uint32)[None, :]
        part = (triton.load(zero_ref, groups[:, None], at[None, :], mask=mask) >> shift) & jnp.uint32(2**width - 1)
        part = part << jnp.uint32(offset) if offset else part
        code = part if code is None else code | part
    assert code is not None  # every width has a plane
    return code.astype(jnp.float32)


def centred(code: jax.Array, zero, kind: str) -> jax.Array:
    """``code - zero`` in float32, exact for integer zeros."""
    if kind == "real":
        return triton.exact_float(code) - triton.exact_zero(0.0) - zero
    return triton.exact_float(code) - triton.exact_zero(zero)


def affine_matmul_triton(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    config: ProductConfig,
    *,
    interpret: bool = False,
    name: str = "affine_matmul",
    extra: tuple[jax.Array, ...] = (),
    finish: Step | None = None,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``.

    Args:
      x, codes, scale, zero, layout: as :func:`affine_matmul` takes them.
      config: block sizes.
      interpret: run by the host.
      name: first part of the kernel's name.
      extra, finish: arrays beyond the affine matrix, and what is added with them, see :func:`packed_product`.
    """
    packing = layout.packing
    together = fields_together(packing, layout.group, config.tiles)

    def load_groups(block, weights, depth):
        # Rows beyond the matrix meet zeros of x; they only need some group that exists.
        group = jnp.minimum(depth // jnp.int32(layout.group), jnp.int32(layout.groups - 1))
        zeros = load_zero(weights[2], layout, group, block.col, block.col_inside)
        return block.load_groups(weights[1], group), zeros

    def late(block, weights, index, total):
        """Adds one chunk whose fields share groups: products of bare codes, scaled once per group."""
        words = block.load_words(weights[0], index)

        def one_group(nth, total):
            field = nth * together
            scales, zeros = load_groups(block, weights, jnp.reshape(block.start(index, field), (1,)))

            def one_field(nth, product):
                w = centred(block.chunk.codes(words, field + nth), zeros, layout.zero_kind).astype(x.dtype)
                return product + block.dot(block.load_x(index, field + nth), w)

            return total + block.unrolled(together, one_field, block.zeros()) * scales

        return block.unrolled(packing.fields // together, one_group, total)

    def early(block, weights, index, total):
        """Adds one chunk whose fields cross groups: every weight is scaled before it is multiplied."""
        words = block.load_words(weights[0], index)

        def one_field(field, total):
            scales, zeros = load_groups(block, weights, block.chunk.row_numbers(index, field))
            w = (centred(block.chunk.codes(words, field), zeros, layout.zero_kind) * scales).astype(x.dtype)
            return total + block.dot(block.load_x(index, field), w)

        return block.unrolled(packing.fields, one_field, total)

    return packed_product(
        x,
        (codes, scale, zero, *extra),
        packing=packing,
        cols=layout.cols,
        config=config,
        name=f"{name}_w{layout.bits}",
        interpret=interpret,
        step=late if fields_share_groups(packing, layout.group, config.tiles) else early,
        finish=finish,
    )
