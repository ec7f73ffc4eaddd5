"""The product through ``jax-triton``, which hands a kernel in Triton's own language to XLA."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.backends.choose import capability, installed, needs_gpu
from pallas_kernels.product_config import ProductConfig, product_config

_DEPTH = 16  # of the least product on tensor cores


def misfit(dtype: Any, layout: AffineLayout) -> str | None:
    """Reason why activations of ``dtype`` cannot be multiplied with a matrix of this layout, or None."""
    run, dtype = layout.packing.run, jnp.dtype(dtype)
    for bad, what in (
        (dtype not in (jnp.bfloat16, jnp.float16), f"x must be bfloat16 or float16, got {dtype.name}"),
        (layout.bits not in (2, 4, 8), f"codes must have 2, 4 or 8 bits, one plane of words, got {layout.bits}"),
        (run < _DEPTH, f"{layout.bits} bits at tile {layout.tile} give runs of {run} rows, a product takes {_DEPTH}"),
        (
            layout.groups > 1 and layout.group % run != 0,
            f"group must be a multiple of the {run} rows of a run, got {layout.group}",
        ),
    ):
        if bad:
            return what
    return None


def refusal(dtype: Any, layout: AffineLayout) -> str | None:
    """Reason why this product cannot run through jax-triton here, or None."""
    return needs_gpu() or installed("jax_triton") or misfit(dtype, layout)


def jax_triton_config(m: int, layout: AffineLayout, dtype: Any) -> ProductConfig:
    """Block sizes by rule: those of the Pallas kernel, narrower where a field holds 64 rows."""
    found = product_config(m, layout.packing, layout.cols, jnp.dtype(dtype))
    deep = m > 64 and layout.packing.run > 32  # as many weights in float32 take the registers of a wide block
    return dataclasses.replace(found, tiles=1, block_n=32 if deep else found.block_n)


def constants(m: int, layout: AffineLayout, config: ProductConfig) -> dict[str, Any]:
    """What is fixed about a kernel for ``m`` rows of activations, as the kernel names it."""
    return {
        "M": m,
        "ROWS": layout.rows,
        "COLS": layout.cols,
        "BITS": layout.bits,
        "TILE": layout.tile,
        "GROUP": layout.group if layout.groups > 1 else layout.rows + layout.tile,  # padding lies in the group too
        "GROUPS": layout.groups,
        "ZERO_KIND": layout.zero_kind,
        "TILES_A_SPLIT": -(-layout.packing.tiles // config.splits),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
    }


def affine_matmul_jax_triton(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    layout: AffineLayout,
    config: ProductConfig,
) -> jax.Array:
    """``x @ w`` for ``x [m, rows]``; float32 sums, returned in the dtype of ``x``.

    Args:
      x, codes, scale, zero, layout: as :func:`affine_matmul` takes them, without a :func:`misfit`.
      config: block sizes; a step reads one tile.
    """
    # A kernel has a fixed number of operands; without a zero it is handed the scale and does not read it.
    return _call(layout, config)(x, codes, scale, scale if zero is None else zero)


@functools.cache
def _call(layout: AffineLayout, config: ProductConfig):
    """The call for one kind of product, which ``vmap`` runs one after the other: jax-triton has no rule for it."""

    @jax.custom_batching.sequential_vmap
    def call(x, codes, scale, zero):
        import jax_triton  # a second to import, for few who ask

        from pallas_kernels.affine_matmul.triton_language import affine_matmul_in_triton

        m, splits = x.shape[0], config.splits
        partial = jax.ShapeDtypeStruct((splits, m, layout.cols), x.dtype if splits == 1 else jnp.float32)
        y = jax_triton.triton_call(
            x,
            codes,
            scale,
            zero,
            kernel=affine_matmul_in_triton,
            out_shape=partial,
            grid=(-(-layout.cols // config.block_n), -(-m // config.block_m), splits),
            num_warps=config.warps,
            num_stages=config.stages,
            compute_capability=capability(),
            **constants(m, layout, config),
        )
        return y[0] if splits == 1 else jnp.sum(y, axis=0).astype(x.dtype)

    return call
