"""The public product: checks, choice of implementation and gradients."""

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.formula_gradient import with_formula_gradient
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.group_sparse_matmul.config import GroupSparseConfig, choose_config
from pallas_kernels.group_sparse_matmul.layout import MOST_ROWS, GroupSparseLayout, StoredGroups, check_arrays
from pallas_kernels.group_sparse_matmul.triton import group_sparse_matmul_triton
from pallas_kernels.group_sparse_matmul.xla import group_sparse_matmul_xla


def group_sparse_matmul(
    x: jax.Array,
    stored: StoredGroups,
    layout: GroupSparseLayout,
    *,
    implementation: str | None = None,
    config: GroupSparseConfig | None = None,
) -> jax.Array:
    """``x @ w`` with ``w`` zero outside its stored groups, which are read as they are packed.

    Args:
      x: ``[..., rows]`` in bfloat16, float16 or float32; the kernel takes at most 8 rows.
      stored: see :class:`StoredGroups`.
      layout: what is fixed about the matrix.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      ``[..., cols]`` in the dtype of ``x``; sums are float32. Differentiable in ``x``, ``scale`` and a real ``zero``.

    Raises:
      TypeError, ValueError: for arrays that do not fit ``layout``, or an implementation that cannot run.
    """
    check_arrays(x, stored, layout)
    rows = x.reshape(-1, layout.rows)
    many = None if rows.shape[0] <= MOST_ROWS else f"{rows.shape[0]} rows, the kernel takes {MOST_ROWS}"
    refusals = {"triton": many or needs_gpu(), "xla": None, "interpret": many}
    name = choose("group_sparse_matmul", implementation, refusals)
    if name == "xla" or rows.shape[0] == 0:
        return group_sparse_matmul_xla(rows, stored, layout).reshape(*x.shape[:-1], layout.cols)
    chosen = choose_config(rows.shape[0], layout, config)

    def kernel(x, *arrays):
        return group_sparse_matmul_triton(x, StoredGroups(*arrays), layout, chosen, interpret=name == "interpret")

    def formula(x, *arrays):
        return group_sparse_matmul_xla(x, StoredGroups(*arrays), layout)

    y: jax.Array = with_formula_gradient(kernel, formula)(*varying_alike(rows, *stored))
    return y.reshape(*x.shape[:-1], layout.cols)
