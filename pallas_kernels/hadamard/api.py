"""The public operations: checks, choice of implementation and the gradient of the rotation."""

import math

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.hadamard.config import HadamardConfig, choose_config
from pallas_kernels.hadamard.layout import HadamardLayout, Rotated, check_block, check_rows
from pallas_kernels.hadamard.triton import block_hadamard_triton, hadamard_quantize_triton
from pallas_kernels.hadamard.xla import block_hadamard_xla, hadamard_quantize_xla


def _chosen(implementation):
    return choose("hadamard", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})


def block_hadamard(
    x: jax.Array, block: int, *, implementation: str | None = None, config: HadamardConfig | None = None
) -> jax.Array:
    """``x H`` for each block of the last axis, ``H`` orthonormal and its own inverse.

    Args:
      x: ``[..., channels]`` in bfloat16, float16 or float32; blocks divide the channels.
      block: 16, 32, 64, 128 or 256.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      The shape and dtype of ``x``; sums are float32. Differentiable.

    Raises:
      TypeError, ValueError: for an array or a block that does not fit, or an implementation that cannot run.
    """
    check_block(block)
    check_rows(x, block, 1)
    name = _chosen(implementation)
    if name == "xla" or x.size == 0:
        return block_hadamard_xla(x, block)
    chosen = choose_config(math.prod(x.shape[:-1]), x.shape[-1], None, block, x.dtype, config)

    def kernel(x):
        return block_hadamard_triton(x, block, chosen, interpret=name == "interpret")

    return with_formula_gradient(kernel, lambda x: block_hadamard_xla(x, block))(x)


def hadamard_quantize(
    x: jax.Array,
    layout: HadamardLayout,
    *,
    implementation: str | None = None,
    config: HadamardConfig | None = None,
) -> Rotated:
    """Rows rotated block by block, scaled by their root mean square, rounded to levels without a zero, and packed.

    Args:
      x: ``[..., channels]`` in bfloat16, float16 or float32; blocks and tiles divide the channels.
      layout: how rows are rotated, rounded and packed.
      implementation, config: as for :func:`block_hadamard`.

    Returns:
      Words, units and sums of levels, of the leading shape of ``x``. A row of zeros has levels 0.

    Raises:
      TypeError, ValueError: for an array that does not fit, or an implementation that cannot run.
    """
    check_rows(x, layout.block, layout.tile)
    name = _chosen(implementation)
    rows = x.reshape(-1, x.shape[-1])
    if name == "xla" or rows.shape[0] == 0:
        found = hadamard_quantize_xla(rows, layout)
    else:
        chosen = choose_config(rows.shape[0], rows.shape[1], layout, layout.block, x.dtype, config)
        found = hadamard_quantize_triton(rows, layout, chosen, interpret=name == "interpret")
    return Rotated(*(a.reshape(*x.shape[:-1], *a.shape[1:]) for a in found))
