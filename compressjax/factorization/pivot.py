"""Low-rank weights with r² fewer numbers: a basis in which r columns of the right factor are those of the identity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.leaf.low_rank import LowRank
from compressjax.leaf.pivot_low_rank import PivotLowRank, pivot_low_rank
from compressjax.ops import dense
from compressjax.select import replace, weights


def pivot_factors(params: Any, *, tolerance: float = 1e-3) -> Any:
    """Every low-rank weight with the identity in its right factor, where that changes it by too little to matter.

    The columns that become the identity are the pivots of an LU factorisation of the transposed right factor, which
    keeps the others' coefficients small. Where rounding in the factors' dtype still moves a weight (any layer of a
    stack) by more than ``tolerance``, it is left as it was.

    Args:
      params: any tree with :class:`~compressjax.leaf.LowRank` weights, made by any method.
      tolerance: largest ``‖new - old‖ / ‖old‖`` (Frobenius norm).

    Returns:
      The tree with :class:`~compressjax.leaf.PivotLowRank` in their place.

    Raises:
      ValueError: ``tolerance`` is not positive, or factors are compressed leaves of their own, which cannot be taken to
        another basis; compress after this, or not at all.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    found = {}
    for path, w in weights(params).items():
        if not isinstance(w, LowRank):
            continue
        if not (isinstance(w.left, jax.Array | np.ndarray) and isinstance(w.right, jax.Array | np.ndarray)):
            raise ValueError(f"{path}: factors that are compressed themselves have no pivot form")
        if w.right.shape[-2] < w.right.shape[-1]:
            new, moved = _pivoted(w.left, w.right)
            if float(moved) <= tolerance:
                found[path] = new
    return replace(params, found)


@jax.jit
def _pivoted(left: jax.Array, right: jax.Array) -> tuple[PivotLowRank, jax.Array]:
    """The pivot form, and how far it moved the worst layer."""
    lead, rank = left.shape[:-2], left.shape[-1]

    def one(factors):
        own, basis = (factor.astype(jnp.float32) for factor in factors)
        triangles, _, order = jax.lax.linalg.lu(basis.T)
        # Rows of the lower factor: r pivots, then the others as combinations of them.
        others = jax.lax.linalg.triangular_solve(
            triangles[:rank], triangles[rank:], left_side=False, lower=True, unit_diagonal=True
        )
        changed = jnp.matmul(own, jnp.take(basis, order[:rank], axis=1), precision="highest")
        return changed, others.T, jnp.argsort(order).astype(jnp.int32)

    flat = tuple(a.reshape(-1, *a.shape[-2:]) for a in (left, right))
    # A loop over layers, not a batch: see numerics.linalg.cholesky_many.
    changed, rest, place = (a.reshape(*lead, *a.shape[1:]) for a in jax.lax.map(one, flat))
    new = pivot_low_rank(changed.astype(left.dtype), rest.astype(right.dtype), place)
    before = dense(LowRank(left=left, right=right))
    away = jnp.linalg.norm(dense(new) - before, axis=(-2, -1))
    size = jnp.linalg.norm(before, axis=(-2, -1))
    return new, jnp.max(away / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
