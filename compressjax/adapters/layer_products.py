"""What the linear layers of flax compute, on weights that only ``compressjax.ops`` may touch."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.ops import logical_shape, matmul


def is_compressed(value: Any) -> bool:
    """Whether ``value`` is a weight that flax itself cannot use: not an array, but known to ``matmul``."""
    return not isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) and matmul.knows(value)


def linear(x: jax.Array, kernel: Any, bias: jax.Array | None, precision: Any) -> jax.Array:
    """``x @ kernel + bias`` over the last axis: ``[..., in] -> [..., out]``.

    Args:
      x: activations ``[..., in]``.
      kernel: compressed weight of logical shape ``[in, out]``.
      bias: ``[out]`` in the dtype of ``x``, or None.
      precision: what a flax layer has in its field of that name.

    Raises:
      ValueError: when the kernel is still stacked, or does not take the width of ``x``.
    """
    shape = logical_shape(kernel)
    if len(shape) != 2 or shape[0] != x.shape[-1]:
        raise ValueError(
            f"kernel of logical shape {list(shape)} does not apply to inputs {list(x.shape)}: want [in, out]"
        )
    with _matmul_precision(precision):
        y = matmul(x, kernel)
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def linear_general(
    x: jax.Array, kernel: Any, bias: jax.Array | None, precision: Any, axes: Sequence[int], features: Sequence[int]
) -> jax.Array:
    """The contraction of ``DenseGeneral`` and ``LinearGeneral`` with the kernel flattened to a matrix.

    Args:
      x: activations; ``axes`` of it are contracted, in increasing order.
      kernel: compressed weight of logical shape ``[prod(contracted extents), prod(features)]``.
      bias: any shape of ``prod(features)`` elements, or None.
      precision: as for :func:`linear`.
      axes: contracted axes of ``x``, negative ones allowed.
      features: extents that take their place at the end.
    """
    contracted = sorted(axis % x.ndim for axis in axes)
    kept = [axis for axis in range(x.ndim) if axis not in contracted]
    width = math.prod(x.shape[axis] for axis in contracted)
    flat = jnp.transpose(x, (*kept, *contracted)).reshape(*(x.shape[axis] for axis in kept), width)
    y = linear(flat, kernel, None if bias is None else bias.reshape(-1), precision)
    return y.reshape(*y.shape[:-1], *features)


def _matmul_precision(precision):
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, jax.lax.Precision):
        precision = precision.name.lower()
    if not isinstance(precision, str):
        raise NotImplementedError(f"precision {precision!r} with a compressed kernel; use a name or jax.lax.Precision")
    return jax.default_matmul_precision(precision)


def refusal(layer: str, path: str, names: Sequence[str]) -> NotImplementedError:
    """The error for a layer that has compressed parameters and no rule for them."""
    where = repr(path) if path else "the top"
    return NotImplementedError(
        f"{layer} at {where} cannot use its compressed {', '.join(names)}: adapters know Dense / Linear, "
        "DenseGeneral / LinearGeneral without batch axes, and Embed. Leave this weight dense (rule None), or read it "
        "in a module of your own and call compressjax.ops on it"
    )
