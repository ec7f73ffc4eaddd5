"""The public product: checks, choice of implementation and gradients."""

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.codebook_matmul.config import choose_config
from pallas_kernels.codebook_matmul.layout import CodebookLayout, check_arrays
from pallas_kernels.codebook_matmul.triton import codebook_matmul_triton
from pallas_kernels.codebook_matmul.xla import codebook_matmul_xla
from pallas_kernels.product_config import ProductConfig


def codebook_matmul(
    x: jax.Array,
    codes: jax.Array,
    levels: jax.Array,
    layout: CodebookLayout,
    *,
    implementation: str | None = None,
    config: ProductConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``w[i, o] = levels[i // group, code[i, o], o]`` read as it is packed.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      codes: uint32 ``[words, cols]``, see :mod:`pallas_kernels.packing`; values beyond the table are not allowed.
      levels: float ``[groups, levels, cols]``, rounded to the dtype of ``x`` before the product.
      layout: what is fixed about the matrix.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: block sizes; those measured on this machine or chosen by rule when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32. Differentiable in ``x`` and ``levels``, through the dense
      formula.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, codes, levels, layout)
    name = choose("codebook_matmul", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    rows = x.reshape(-1, layout.rows)
    if name == "xla" or rows.shape[0] == 0:
        return codebook_matmul_xla(x, codes, levels, layout)
    chosen = choose_config(rows.shape[0], layout, x.dtype, config)

    def kernel(x, codes, levels):
        return codebook_matmul_triton(x, codes, levels, layout, chosen, interpret=name == "interpret")

    def formula(x, codes, levels):
        return codebook_matmul_xla(x, codes, levels, layout)

    y: jax.Array = with_formula_gradient(kernel, formula)(*varying_alike(rows, codes, levels))
    return y.reshape(*x.shape[:-1], layout.cols)
