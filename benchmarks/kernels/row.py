"""Cases of the two shapes that most kernels have: a product with packed weights, and one pass over arrays."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.packing import Packing
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.proof.report import Case

DECODE_ROWS = 16  # products with at most so many rows of activations are bound by memory


def least_bytes(read: Any, written: Any) -> int:
    """Bytes of all arrays of two trees: each operand read once, each result written once."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((read, written)))


def product_case(
    spec: Any,
    *,
    m: int,
    packing: Packing,
    config: ProductConfig,
    kernel: str,
    call: Callable[..., jax.Array],
    xla: Callable[..., jax.Array] | None = None,
    valid: Callable[[Any], Any] | None = None,
) -> Case:
    """A product of ``m`` rows of activations with packed weights.

    Args:
      spec: has a name and arguments.
      m: rows of activations.
      packing: of the weight's codes.
      config: block sizes that the call will take.
      kernel: pattern of the kernel's name.
      call: takes the arguments and ``implementation``.
      xla: the formula, where it is not the call's own.
      valid: see :class:`Case`.
    """
    args = tuple(a for a in spec.arguments() if a is not None)
    formula = xla or functools.partial(call, implementation="xla")
    return Case(
        name=spec.name,
        kernel=kernel,
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=formula,
        least_bytes=least_bytes(args, jax.eval_shape(formula, *args)),
        step_bytes=4 * config.tiles * packing.words * config.block_n,
        tensor_core=True,
        decode=m <= DECODE_ROWS,
        valid=valid,
    )


def pass_case(
    name: str,
    *,
    kernel: str,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    step_bytes: int,
    tensor_core: bool = False,
    valid: Callable[[Any], Any] | None = None,
) -> Case:
    """One pass over arrays, bound by memory.

    Args:
      name: of the case.
      kernel: pattern of the kernel's name.
      call: takes the arguments and ``implementation``.
      args: shapes.
      step_bytes: bytes of the large operands that one program reads.
      tensor_core: whether it multiplies on tensor cores.
      valid: see :class:`Case`.
    """
    formula = functools.partial(call, implementation="xla")
    return Case(
        name=name,
        kernel=kernel,
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=formula,
        least_bytes=least_bytes(args, jax.eval_shape(formula, *args)),
        step_bytes=step_bytes,
        tensor_core=tensor_core,
        decode=True,
        valid=valid,
    )
