"""The sparse part inside the kernel of the packed product: added once to the sums of a block before they are stored.

Every output walks its own values, all outputs of the block at the same time, as far as the longest goes; activations
are gathered through the cache. Nothing but the outliers themselves is read beyond what the packed product reads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.affine_matmul.triton import affine_matmul_triton
from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.codebook_matmul.layout import CodebookLayout
from pallas_kernels.codebook_matmul.triton import codebook_matmul_triton
from pallas_kernels.outlier_matmul.outliers import Outliers
from pallas_kernels.product_config import ProductConfig


def _adding_outliers(first: int, own_x: bool) -> Callable[..., jax.Array]:
    """What a packed product adds at its end; the arrays of the outliers start at ``refs[first]``."""

    def finish(block, refs, split, total):
        starts_ref, inputs_ref, values_ref = refs[first : first + 3]
        x_ref = refs[first + 3] if own_x else block.x
        begin = triton.load(starts_ref, block.col, mask=block.col_inside)
        end = triton.load(starts_ref, block.col + jnp.int32(1), mask=block.col_inside)
        longest = jnp.max(end - begin)
        # Splits share the depth of the packed product; the outliers belong to the first of them.
        count = jnp.where(split == jnp.int32(0), longest, jnp.int32(0))

        def step(i, total):
            at = begin + i
            held = at < end
            inputs = triton.load(inputs_ref, at, mask=held).astype(jnp.int32)
            values = triton.load(values_ref, at, mask=held).astype(jnp.float32)
            mask = held[None, :] if block.row_inside is None else held[None, :] & block.row_inside
            x = triton.load(x_ref, block.row[:, None], inputs[None, :], mask=mask)
            return total + x.astype(jnp.float32) * values[None, :]

        return lax.fori_loop(jnp.int32(0), count, step, total)

    return finish


def outlier_matmul_triton(
    x: jax.Array,
    base: tuple[jax.Array | None, ...],
    outliers: Outliers,
    x_outliers: jax.Array | None,
    layout: AffineLayout | CodebookLayout,
    config: ProductConfig,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``x @ base + x_outliers @ outliers`` for ``x [m, rows]``, one launch."""
    extra = (*outliers, *(() if x_outliers is None else (x_outliers,)))
    finish = _adding_outliers(len(base), x_outliers is not None)
    if isinstance(layout, AffineLayout):
        codes, scale, zero = base
        assert codes is not None and scale is not None  # checked by the caller
        return affine_matmul_triton(
            x,
            codes,
            scale,
            zero,
            layout,
            config,
            interpret=interpret,
            name="outlier_affine",
            extra=extra,
            finish=finish,
        )
    codes, levels = base
    assert codes is not None and levels is not None  # checked by the caller
    return codebook_matmul_triton(
        x, codes, levels, layout, config, interpret=interpret, name="outlier_codebook", extra=extra, finish=finish
    )
