"""A weight that is a product of two thin ones: ``w = left right``."""

from typing import Any

import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class LowRank:
    """Product of rank r, stacked layers leading; each factor is an array or a compressed leaf of its own.

    Attributes:
      left: ``[*lead, in, r]``.
      right: ``[*lead, r, out]``.
    """

    left: Any
    right: Any


def low_rank(left: Any, right: Any) -> LowRank:
    """Builds a :class:`LowRank` leaf.

    Raises:
      ValueError: when the factors do not fit each other.
    """
    inner, outer = logical_shape(left), logical_shape(right)
    if inner[:-2] != outer[:-2] or inner[-1] != outer[-2]:
        raise ValueError(f"left [..., in, r] and right [..., r, out] do not fit each other: {inner} and {outer}")
    return LowRank(left=left, right=right)


@dense.register(LowRank)
def _dense(w: LowRank):
    left, right = (dense(factor).astype(jnp.float32) for factor in (w.left, w.right))
    return jnp.matmul(left, right, precision="highest")


@logical_shape.register(LowRank)
def _shape(w: LowRank):
    return (*logical_shape(w.left)[:-1], logical_shape(w.right)[-1])


@matmul.register(LowRank)
def _matmul(x, w: LowRank):
    return matmul(matmul(x, w.left), w.right)


@matmul_t.register(LowRank)
def _matmul_t(x, w: LowRank):
    return matmul_t(matmul_t(x, w.right), w.left)


@take.register(LowRank)
def _take(w: LowRank, ids):
    rows = take(w.left, ids)
    return matmul(rows.astype(jnp.float32), w.right)
