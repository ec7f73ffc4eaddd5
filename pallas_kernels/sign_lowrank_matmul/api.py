"""The public product: checks, choice of implementation and gradients."""

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.sign_lowrank_matmul.config import choose_config
from pallas_kernels.sign_lowrank_matmul.layout import SignBlocks, SignLayout, check_arrays
from pallas_kernels.sign_lowrank_matmul.triton import sign_lowrank_matmul_triton
from pallas_kernels.sign_lowrank_matmul.xla import sign_lowrank_matmul_xla


def sign_lowrank_matmul(
    x: jax.Array,
    blocks: SignBlocks,
    layout: SignLayout,
    *,
    implementation: str | None = None,
    config: ProductConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``w = sum over j < loaded of S_j * (u_j v_j)``, signs read as they are packed.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32.
      blocks: see :class:`SignBlocks`; ``loaded`` must not exceed the number of ``slots``.
      layout: what is fixed about the matrix.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: block sizes; those measured on this machine or chosen by rule when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32, each block's weights are rounded to the dtype of ``x``.
      Differentiable in ``x``, ``u`` and ``v``, through the dense formula.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, blocks, layout)
    name = choose("sign_lowrank_matmul", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    rows = x.reshape(-1, layout.rows)
    if name == "xla" or rows.shape[0] == 0:
        return sign_lowrank_matmul_xla(x, blocks, layout)
    chosen = choose_config(rows.shape[0], layout, x.dtype, config)
    deep = chosen.tiles * layout.packing.run
    if deep < 16:
        raise ValueError(
            f"sign_lowrank_matmul: config.tiles={chosen.tiles} makes products {deep} deep, 16 is the least"
        )

    def kernel(x, *arrays):
        return sign_lowrank_matmul_triton(x, SignBlocks(*arrays), layout, chosen, interpret=name == "interpret")

    def formula(x, *arrays):
        return sign_lowrank_matmul_xla(x, SignBlocks(*arrays), layout)

    y: jax.Array = with_formula_gradient(kernel, formula)(*varying_alike(rows, *blocks))
    return y.reshape(*x.shape[:-1], layout.cols)
