"""The public product: checks, choice of implementation and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul import layout as affine
from pallas_kernels.affine_matmul.xla import affine_matmul_xla
from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.codebook_matmul import layout as codebook
from pallas_kernels.codebook_matmul.xla import codebook_matmul_xla
from pallas_kernels.outlier_matmul.config import choose_config
from pallas_kernels.outlier_matmul.outliers import Outliers, check_outliers
from pallas_kernels.outlier_matmul.triton import outlier_matmul_triton
from pallas_kernels.outlier_matmul.xla import outlier_product
from pallas_kernels.product_config import ProductConfig

Layout = affine.AffineLayout | codebook.CodebookLayout


def outlier_matmul(
    x: jax.Array,
    base: tuple[jax.Array | None, ...],
    outliers: Outliers,
    layout: Layout,
    *,
    x_outliers: jax.Array | None = None,
    implementation: str | None = None,
    config: ProductConfig | None = None,
) -> jax.Array:
    """``x @ (base + outliers)``: a packed matrix and single weights of float, in one launch.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      base: ``(codes, scale, zero)`` as :func:`affine_matmul` takes them, or ``(codes, levels)`` as
        :func:`codebook_matmul` does, whichever ``layout`` is of.
      outliers: see :class:`Outliers`.
      layout: of the packed matrix.
      x_outliers: activations of the shape of ``x`` that the outliers meet where they are numbered in another order than
        the packed inputs; ``x`` itself when None.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: block sizes; chosen by rule from those of the packed product when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32. Differentiable through the dense formula.

    Raises:
      TypeError, ValueError: for arrays that do not fit, or an implementation that cannot run.
    """
    _check(x, base, outliers, layout, x_outliers)
    name = choose("outlier_matmul", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    rows = x.reshape(-1, layout.rows)
    own = None if x_outliers is None else x_outliers.reshape(-1, layout.rows)

    def formula(x, own, *arrays):
        weights, outliers = arrays[: len(base)], Outliers(*arrays[len(base) :])
        product: Callable[..., jax.Array] = affine_matmul_xla
        if isinstance(layout, codebook.CodebookLayout):
            product = codebook_matmul_xla
        sparse = outlier_product(x if own is None else own, outliers, layout.cols)
        return (product(x, *weights, layout).astype(jnp.float32) + sparse).astype(x.dtype)

    if name == "xla" or rows.shape[0] == 0:
        return formula(rows, own, *base, *outliers).reshape(*x.shape[:-1], layout.cols)
    chosen = choose_config(rows.shape[0], layout, x.dtype, config)

    def kernel(x, own, *arrays):
        weights, outliers = arrays[: len(base)], Outliers(*arrays[len(base) :])
        return outlier_matmul_triton(x, weights, outliers, own, layout, chosen, interpret=name == "interpret")

    y: jax.Array = with_formula_gradient(kernel, formula)(*varying_alike(rows, own, *base, *outliers))
    return y.reshape(*x.shape[:-1], layout.cols)


def _check(x, base, outliers, layout, x_outliers):
    arrays = 3 if isinstance(layout, affine.AffineLayout) else 2
    if len(base) != arrays:
        raise ValueError(f"outlier_matmul: base must be {arrays} arrays for a {type(layout).__name__}, got {len(base)}")
    if isinstance(layout, affine.AffineLayout):
        affine.check_arrays(x, base[0], base[1], base[2], layout)
    else:
        codebook.check_arrays(x, base[0], base[1], layout)
    check_outliers(outliers, layout.cols)
    if x_outliers is not None and (x_outliers.shape != x.shape or x_outliers.dtype != x.dtype):
        raise ValueError(
            f"outlier_matmul: x_outliers must be {x.dtype} of the shape of x {x.shape}, got {x_outliers.dtype} of "
            f"shape {x_outliers.shape}"
        )
