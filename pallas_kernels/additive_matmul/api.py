"""The public product: checks, choice of implementation and gradients."""

import jax

from pallas_kernels.additive_matmul.config import AdditiveConfig, choose_config
from pallas_kernels.additive_matmul.layout import AdditiveLayout, check_arrays
from pallas_kernels.additive_matmul.triton import additive_matmul_triton
from pallas_kernels.additive_matmul.xla import additive_matmul_xla
from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike


def additive_matmul(
    x: jax.Array,
    codes: jax.Array,
    codebooks: jax.Array,
    scale: jax.Array,
    layout: AdditiveLayout,
    *,
    implementation: str | None = None,
    config: AdditiveConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``w[i, o] = scale[o] * sum_m codebooks[m, codes[i // group, o, m], i % group]``, read as coded.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      codes: uint8 ``[groups, cols, books]`` for up to 256 entries, uint16 beyond; codes beyond the codebook are not
        allowed.
      codebooks: bfloat16, float16 or float32 ``[books, entries, group]``; the sum of a group's vectors is rounded to
        the dtype of ``x`` before the product.
      scale: bfloat16, float16 or float32 ``[cols]``, applied to the float32 sums.
      layout: what is fixed about the matrix.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: block sizes; those measured on this machine or chosen by rule when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32. Differentiable in ``x``, ``codebooks`` and ``scale``,
      through the dense formula.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, codes, codebooks, scale, layout)
    name = choose("additive_matmul", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    rows = x.reshape(-1, layout.rows)
    if name == "xla" or rows.shape[0] == 0:
        return additive_matmul_xla(x, codes, codebooks, scale, layout)
    chosen = choose_config(rows.shape[0], layout, x.dtype, config)

    def kernel(x, codes, codebooks, scale):
        return additive_matmul_triton(x, codes, codebooks, scale, layout, chosen, interpret=name == "interpret")

    def formula(x, codes, codebooks, scale):
        return additive_matmul_xla(x, codes, codebooks, scale, layout)

    y: jax.Array = with_formula_gradient(kernel, formula)(*varying_alike(rows, codes, codebooks, scale))
    return y.reshape(*x.shape[:-1], layout.cols)
