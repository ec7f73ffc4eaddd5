"""A weight that is the sum of parts: quantised plus low rank, dense plus outliers."""

import functools
from typing import Any

import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class Sum:
    """``w = parts[0] + parts[1] + ...``; every part is an array or a leaf of the same logical shape.

    Attributes:
      parts: tuple of at least one weight.
    """

    parts: tuple[Any, ...]


def add(*parts: Any) -> Sum:
    """Sums weights of equal logical shape; sums among the parts are flattened.

    Raises:
      ValueError: without parts, or when their logical shapes differ.
    """
    flat = tuple(q for p in parts for q in (p.parts if isinstance(p, Sum) else (p,)))
    shapes = [logical_shape(p) for p in flat]
    if not shapes or any(s != shapes[0] for s in shapes):
        raise ValueError(f"parts must be at least one weight, all of one logical shape, got {shapes}")
    return Sum(parts=flat)


def _total(terms):
    return functools.reduce(jnp.add, terms)


@dense.register(Sum)
def _dense(w: Sum):
    return _total(dense(p).astype(jnp.float32) for p in w.parts)


@logical_shape.register(Sum)
def _shape(w: Sum):
    return logical_shape(w.parts[0])


@matmul.register(Sum)
def _matmul(x, w: Sum):
    return _total(matmul(x, p) for p in w.parts)


@matmul_t.register(Sum)
def _matmul_t(x, w: Sum):
    return _total(matmul_t(x, p) for p in w.parts)


@take.register(Sum)
def _take(w: Sum, ids):
    return _total(take(p, ids).astype(jnp.float32) for p in w.parts)
