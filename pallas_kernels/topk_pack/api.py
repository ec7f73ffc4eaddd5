"""The public choice: checks, and choice of implementation."""

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.topk_pack.config import choose_config
from pallas_kernels.topk_pack.layout import Largest, TopKLayout, check_vector
from pallas_kernels.topk_pack.triton import topk_pack_triton
from pallas_kernels.topk_pack.xla import topk_pack_xla


def topk_pack(
    x: jax.Array,
    layout: TopKLayout,
    *,
    implementation: str | None = None,
    config: BlockConfig | None = None,
) -> Largest:
    """The ``k`` entries of largest magnitude of every chunk, exactly; of equal ones those that come first.

    Args:
      x: ``[d]`` in bfloat16, float16 or float32.
      layout: entries of a chunk, how many are kept, and whether the rest is returned.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      Values and places ``[chunks, k]`` in ascending places, and what is left of ``x``. NaN counts as largest.

    Raises:
      TypeError, ValueError: for an array that does not fit, or an implementation that cannot run.
    """
    check_vector(x)
    name = choose("topk_pack", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    if name == "xla" or x.size == 0:
        return topk_pack_xla(x, layout)
    return topk_pack_triton(x, layout, choose_config(x.size, layout, config), interpret=name == "interpret")
