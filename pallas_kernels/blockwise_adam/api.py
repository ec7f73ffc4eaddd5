"""The public step: checks, and choice of implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.blockwise_adam.config import choose_config
from pallas_kernels.blockwise_adam.layout import MOST_BLOCK, AdamLayout, Hyper, Moments, check_arrays, tables
from pallas_kernels.blockwise_adam.triton import blockwise_adam_triton
from pallas_kernels.blockwise_adam.xla import blockwise_adam_xla


def blockwise_adam(
    g: jax.Array,
    moments: Moments,
    hyper: Hyper,
    layout: AdamLayout,
    *,
    p: jax.Array | None = None,
    implementation: str | None = None,
    config: BlockConfig | None = None,
) -> tuple[jax.Array, Moments]:
    """A step of Adam with moments in 8 bits.

    Args:
      g: gradient of any shape in bfloat16, float16 or float32.
      moments: as the last step left them.
      hyper: numbers of this step.
      layout: how moments are stored.
      p: parameter of the shape of ``g``; None to get the direction of the step alone.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      The moved parameter ``p - rate (d + decay p)`` in its dtype, or the direction ``d`` in float32, and the moments.
      A block whose moment is not finite reads back as NaN.

    Raises:
      TypeError, ValueError: for arrays that do not fit, or an implementation that cannot run.
    """
    check_arrays(g, moments, p, layout)
    width = layout.rows(g.shape)[2]
    small = None if width <= MOST_BLOCK else f"blocks of {width} values, the kernel takes {MOST_BLOCK}"
    name = choose("blockwise_adam", implementation, {"triton": small or needs_gpu(), "xla": None, "interpret": small})
    operands = varying_alike(g, *moments, hyper.numbers(), jnp.asarray(tables(layout)), p)
    first, *kept, numbers, maps, parameter = operands
    known = Moments(*kept)  # pyright: ignore[reportArgumentType]
    assert first is not None and numbers is not None and maps is not None  # arrays were given
    if name == "xla" or g.size == 0:
        return blockwise_adam_xla(first, known, numbers, maps, parameter, layout)
    chosen = choose_config(g.shape, layout, config)
    return blockwise_adam_triton(first, known, numbers, maps, parameter, layout, chosen, interpret=name == "interpret")
