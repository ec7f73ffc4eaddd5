"""Taking a kernel where the computation runs on a GPU, and the formula of the leaf everywhere else."""

from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.backends.choose import on_gpu

KERNEL_ACTIVATIONS = frozenset(("bfloat16", "float16", "float32"))
"""Names of the dtypes of activations that kernels take."""


def kernel_or_formula(
    kernel: Callable[..., Any], formula: Callable[..., Any], refusal: str | None, *operands: Any
) -> Any:
    """``kernel(*operands)`` lowered for an NVIDIA GPU, ``formula(*operands)`` for any other platform.

    Where no GPU is the default device only the formula is traced, so a machine without one pays nothing. Where one is,
    both are traced and the platform the program is lowered for decides, for a program may still run on the host.

    Args:
      kernel: takes the operands; imports what it needs, for importing kernels is slow.
      formula: the same in plain JAX.
      refusal: why the kernel cannot take these operands, or None.
      *operands: arrays, leaves and other pytrees.
    """
    if refusal is not None or not on_gpu():
        return formula(*operands)
    return jax.lax.platform_dependent(*operands, cuda=kernel, default=formula)
