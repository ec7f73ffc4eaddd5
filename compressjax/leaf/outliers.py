"""A few single weights, each with its place: what is added to a coarse weight where it must not be coarse."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take

# Up to this many rows of activations, a gather per stored value is cheaper than a product with the dense overlay.
_FEW_ROWS = 16


@leaf(static=("shape",))
class Outliers:
    """Sparse weight of logical shape ``[in, out]`` in compressed sparse rows of its transpose; stacked layers lead.

    The values of output ``o`` stand at ``starts[o]:starts[o+1]``, their inputs ascending. The room is the same in
    all layers of a stack; slots from ``starts[out]`` on are empty, but are stored and counted like the others.

    Attributes:
      starts: int32 ``[*lead, out + 1]``.
      inputs: ``[*lead, capacity]``, uint16 up to 65536 inputs, int32 beyond.
      values: float ``[*lead, capacity]``.
      shape: ``(in, out)``.
    """

    starts: jax.Array
    inputs: jax.Array
    values: jax.Array
    shape: tuple[int, int]


def pack_outliers(where: jax.Array, values: jax.Array, capacity: int) -> Outliers:
    """Builds an :class:`Outliers` leaf from one matrix.

    Args:
      where: bool ``[in, out]``, the places to store; under ``jit`` the caller sees to it that they are at most
        ``capacity``.
      values: float ``[in, out]``, read at those places and stored in its dtype.
      capacity: slots, >= 0.

    Raises:
      ValueError: for shapes that differ, a negative capacity, more than ``2**31 - 1`` weights, or (outside of ``jit``)
        more places than slots.
    """
    if where.ndim != 2 or where.shape != values.shape:
        raise ValueError(f"where and values must be [in, out] of one shape, got {where.shape} and {values.shape}")
    if capacity < 0:
        raise ValueError(f"capacity must be >= 0, got {capacity}")
    rows, cols = where.shape
    if rows * cols >= 2**31:
        raise ValueError(f"places are found by 32-bit numbers: at most 2**31 - 1 weights, got {rows} x {cols}")
    if not isinstance(where, Tracer) and int(jnp.sum(where, dtype=jnp.int32)) > capacity:
        raise ValueError(f"capacity={capacity} is too small for {int(jnp.sum(where, dtype=jnp.int32))} outliers")
    counts = jnp.sum(where, axis=0, dtype=jnp.int32)
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    (place,) = jnp.nonzero(where.T.reshape(-1), size=capacity, fill_value=rows * cols)
    stored = jnp.take(values.T.reshape(-1), place, mode="fill", fill_value=0)
    index = jnp.where(place < rows * cols, place % rows, 0)
    return Outliers(
        starts=starts,
        inputs=index.astype(jnp.uint16 if rows <= 2**16 else jnp.int32),
        values=stored,
        shape=(rows, cols),
    )


def outputs_of(w: Outliers) -> jax.Array:
    """Output of each slot of an unstacked leaf, int32 ``[capacity]``; ``out`` where the slot is empty."""
    slots = jnp.arange(w.values.shape[-1], dtype=jnp.int32)
    return jnp.searchsorted(w.starts, slots, side="right").astype(jnp.int32) - 1


def outlier_mask(w: Outliers) -> jax.Array:
    """Which weights are stored, bool ``[*lead, in, out]``."""

    def one(w):
        at = (w.inputs.astype(jnp.int32), outputs_of(w))
        return jnp.zeros(w.shape, bool).at[at].set(True, mode="drop")

    return _over_lead(one, w)(w)


def trim_outliers(tree: Any) -> Any:
    """The tree with the empty slots cut off that no layer of a stack uses; outside of ``jit``, for sizes change.

    Args:
      tree: any pytree; :class:`Outliers` in it, also inside sums, are cut, all else stays.

    Raises:
      ValueError: for a traced leaf.
    """

    def one(w):
        if not isinstance(w, Outliers):
            return w
        if isinstance(w.starts, Tracer):
            raise ValueError("trim_outliers changes shapes and must run outside of jit, vmap and scan")
        most = int(np.max(np.asarray(w.starts)[..., -1]))
        return Outliers(starts=w.starts, inputs=w.inputs[..., :most], values=w.values[..., :most], shape=w.shape)

    return jax.tree.map(one, tree, is_leaf=lambda value: isinstance(value, Outliers))


def _over_lead(f, w):
    for _ in range(w.starts.ndim - 1):
        f = jax.vmap(f)
    return f


# Under jit so that a model traces the scatter once per shape of weight, not at every product.
@dense.register(Outliers)
@jax.jit
def _dense(w: Outliers):
    def one(w):
        at = (w.inputs.astype(jnp.int32), outputs_of(w))
        return jnp.zeros(w.shape, jnp.float32).at[at].add(w.values.astype(jnp.float32), mode="drop")

    return _over_lead(one, w)(w)


@logical_shape.register(Outliers)
def _shape(w: Outliers):
    return (*w.starts.shape[:-1], *w.shape)


@matmul.register(Outliers)
def _matmul(x, w: Outliers):
    if w.starts.ndim > 1 or math.prod(x.shape[:-1]) > _FEW_ROWS:
        return x @ dense(w).astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    terms = jnp.take(rows, w.inputs.astype(jnp.int32), axis=1) * w.values.astype(jnp.float32)[None]
    y = jax.ops.segment_sum(terms.T, outputs_of(w), w.shape[1], indices_are_sorted=True).T
    return y.reshape(*x.shape[:-1], w.shape[1]).astype(x.dtype)


@matmul_t.register(Outliers)
def _matmul_t(x, w: Outliers):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))


@take.register(Outliers)
def _take(w: Outliers, ids):
    return jnp.take(dense(w), ids, axis=0)
