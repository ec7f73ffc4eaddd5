"""A weight that is the sum of parts: quantised plus low rank, dense plus outliers."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from compressjax.leaf import affine, codebook, two_level
from compressjax.leaf.affine import Affine
from compressjax.leaf.codebook import Codebook
from compressjax.leaf.outliers import Outliers
from compressjax.leaf.registration import leaf
from compressjax.leaf.two_level import TwoLevelAffine
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take
from compressjax.ops.on_gpu import kernel_or_formula


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
    return kernel_or_formula(_matmul_kernel, _matmul_parts, _kernel_refusal(x, w), x, w)


def _matmul_parts(x, w: Sum):
    return _total(matmul(x, p) for p in w.parts)


_PACKED: Mapping[type, Any] = MappingProxyType({Affine: affine, Codebook: codebook, TwoLevelAffine: two_level})


def _kernel_refusal(x, w):
    """Why no single GPU kernel takes all parts, or None: it takes a packed weight with outliers."""
    if len(w.parts) != 2 or type(w.parts[0]) not in _PACKED or not isinstance(w.parts[1], Outliers):
        return "the parts are not a packed weight and outliers"
    if w.parts[1].values.shape[-1] == 0:
        return "there are no outliers"
    return _PACKED[type(w.parts[0])].kernel_refusal(x, w.parts[0])


def _matmul_kernel(x, w: Sum):
    from pallas_kernels import outlier_matmul as kernels

    packed, apart = w.parts
    base, layout = _PACKED[type(packed)].kernel_operands(packed)
    ordered = two_level.in_order(x, packed) if isinstance(packed, TwoLevelAffine) else x
    return kernels.outlier_matmul(
        ordered,
        base,
        kernels.Outliers(apart.starts, apart.inputs, apart.values),
        layout,
        x_outliers=None if ordered is x else x,
        implementation="triton",
    )


@matmul_t.register(Sum)
def _matmul_t(x, w: Sum):
    return _total(matmul_t(x, p) for p in w.parts)


@take.register(Sum)
def _take(w: Sum, ids):
    return _total(take(p, ids).astype(jnp.float32) for p in w.parts)
