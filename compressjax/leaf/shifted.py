"""A weight all of whose rows share a constant part: a compressed table and the mean row it lost."""

from typing import Any

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class Shifted:
    """``w = weight + 1 shiftᵀ``, stacked layers leading.

    Attributes:
      weight: ``[*lead, in, out]``, an array or a leaf.
      shift: ``[*lead, out]``.
    """

    weight: Any
    shift: jax.Array


def shifted(weight: Any, shift: jax.Array) -> Shifted:
    """Builds a :class:`Shifted` leaf.

    Raises:
      ValueError: a shift of another shape than one number per column.
    """
    *lead, _, out = logical_shape(weight)
    if shift.shape != (*lead, out):
        raise ValueError(f"shift must be {(*lead, out)} for a weight {logical_shape(weight)}, got {shift.shape}")
    return Shifted(weight=weight, shift=shift)


@dense.register(Shifted)
def _dense(w: Shifted):
    return dense(w.weight).astype(jnp.float32) + w.shift.astype(jnp.float32)[..., None, :]


@logical_shape.register(Shifted)
def _shape(w: Shifted):
    return logical_shape(w.weight)


@matmul.register(Shifted)
def _matmul(x, w: Shifted):
    return matmul(x, w.weight) + jnp.sum(x, axis=-1, keepdims=True) * _row(w, x)


@matmul_t.register(Shifted)
def _matmul_t(x, w: Shifted):
    return matmul_t(x, w.weight) + jnp.sum(x * _row(w, x), axis=-1, keepdims=True)


@take.register(Shifted)
def _take(w: Shifted, ids):
    rows = take(w.weight, ids)
    return rows + _row(w, rows)


def _row(w, like):
    return w.shift.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))
