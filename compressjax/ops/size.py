"""Exact sizes: bits that a weight or a tree occupies, and how many parameters it stands for."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.dispatch import verb
from compressjax.ops.to_dense import logical_shape


@verb(on="w")
def nbits(w: Any) -> int:
    """Bits that ``w`` occupies: payload, scales, zeros, indices, codebooks, outliers and padding.

    Args:
      w: an array, a compressed leaf, or a dict, list or tuple of them; shapes suffice, values are not read.

    Returns:
      A Python integer, so no overflow at any size.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="w")
def size(w: Any) -> int:
    """Number of parameters that ``w`` stands for (not the numbers it stores)."""
    raise NotImplementedError("run by the rule of its argument's type")


def array_bits(a: jax.Array) -> int:
    """Bits of one stored array; 4-bit and smaller dtypes count their true width."""
    return math.prod(a.shape) * jnp.finfo(a.dtype).bits if jnp.issubdtype(a.dtype, jnp.floating) else _integer_bits(a)


def _integer_bits(a):
    if a.dtype == jnp.bool_:
        return math.prod(a.shape) * 8
    if jnp.issubdtype(a.dtype, jnp.integer):
        return math.prod(a.shape) * jnp.iinfo(a.dtype).bits
    return math.prod(a.shape) * a.dtype.itemsize * 8


def stored_bits(leaf: Any) -> int:
    """Bits of every array that a compressed leaf stores: the ``nbits`` of a leaf that hides nothing in metadata."""
    return sum(array_bits(a) for a in jax.tree.leaves(leaf))


@nbits.register(jax.Array)
def _nbits_array(w):
    return array_bits(w)


@size.register(jax.Array)
def _size_array(w):
    return math.prod(logical_shape(w))


@nbits.register(dict)
def _nbits_dict(w):
    return sum(nbits(value) for value in w.values())


@nbits.register(list)
@nbits.register(tuple)
def _nbits_sequence(w):
    return sum(nbits(value) for value in w)


@size.register(dict)
def _size_dict(w):
    return sum(size(value) for value in w.values())


@size.register(list)
@size.register(tuple)
def _size_sequence(w):
    return sum(size(value) for value in w)
