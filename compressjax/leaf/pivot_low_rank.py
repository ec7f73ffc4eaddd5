"""A product of two thin matrices of which the second holds an identity: ``w[:, j] = (left [I rest])[:, place[j]]``.

Rank r leaves r columns of the right factor free to choose. With the identity there, r² fewer numbers are stored, and as
many fewer multiplied.
"""

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class PivotLowRank:
    """Product of rank r, stacked layers leading.

    Attributes:
      left: float ``[*lead, in, r]``.
      rest: float ``[*lead, r, out - r]``.
      place: int32 ``[*lead, out]``, a permutation: where each output stands among the r plain ones and the others.
    """

    left: jax.Array
    rest: jax.Array
    place: jax.Array


def pivot_low_rank(left: jax.Array, rest: jax.Array, place: jax.Array) -> PivotLowRank:
    """Builds a :class:`PivotLowRank` leaf.

    Raises:
      ValueError: when the shapes do not fit each other.
    """
    rank, others, outputs = left.shape[-1], rest.shape[-1], place.shape[-1]
    leads = {left.shape[:-2], rest.shape[:-2], place.shape[:-1]}
    if len(leads) != 1 or rest.shape[-2] != rank or rank + others != outputs:
        raise ValueError(
            "left [..., in, r], rest [..., r, out - r] and place [..., out] do not fit each other: "
            f"{left.shape}, {rest.shape} and {place.shape}"
        )
    return PivotLowRank(left=left, rest=rest, place=place)


def _spread(thin, w):
    """``thin [..., r]`` to all outputs of an unstacked weight."""
    return jnp.take(jnp.concatenate([thin, thin @ w.rest.astype(thin.dtype)], axis=-1), w.place, axis=-1)


@dense.register(PivotLowRank)
def _dense(w: PivotLowRank):
    left, rest = w.left.astype(jnp.float32), w.rest.astype(jnp.float32)
    wide = jnp.concatenate([left, jnp.matmul(left, rest, precision="highest")], axis=-1)
    return jnp.take_along_axis(wide, jnp.broadcast_to(w.place[..., None, :], wide.shape), axis=-1)


@logical_shape.register(PivotLowRank)
def _shape(w: PivotLowRank):
    return (*w.left.shape[:-1], w.place.shape[-1])


@matmul.register(PivotLowRank)
def _matmul(x, w: PivotLowRank):
    return _spread(x @ w.left.astype(x.dtype), w)


@matmul_t.register(PivotLowRank)
def _matmul_t(x, w: PivotLowRank):
    rank = w.left.shape[-1]
    ordered = jnp.zeros_like(x).at[..., w.place].set(x)
    thin = ordered[..., :rank] + jnp.einsum("...o,ro->...r", ordered[..., rank:], w.rest.astype(x.dtype))
    return jnp.einsum("...r,ir->...i", thin, w.left.astype(x.dtype))


@take.register(PivotLowRank)
def _take(w: PivotLowRank, ids):
    return _spread(jnp.take(w.left, ids, axis=0).astype(jnp.float32), w)
