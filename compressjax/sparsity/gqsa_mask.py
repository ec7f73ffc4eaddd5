"""Which weights to keep: scores, and exact choices of whole groups or of n in every m.

Counts are exact and static, ties go to the lower index, so the stored size is known before any weight is.
"""

import jax
import jax.numpy as jnp

from compressjax.quantization.hessian_plan import HessianPlan


def weight_scores(w: jax.Array, plan: HessianPlan, score: str) -> jax.Array:
    """What dropping each weight costs, float32 ``[in, out]``.

    "wanda": ``w² H_ii``, the loss if nothing else moves; "obs": ``w² / [H⁻¹]_ii``, if all others compensate (with the
    inverse of the whole damped Hessian, not the sweep's partial ones); "magnitude": ``w²``.
    """
    if score == "magnitude":
        return w**2
    if score == "wanda":
        return w**2 * jnp.diagonal(plan.raw)[:, None]
    inverse = jnp.zeros((w.shape[0],), jnp.float32).at[plan.perm].set(jnp.sum(plan.factor.u**2, axis=0))
    return w**2 / inverse[:, None]


def group_scores(scores: jax.Array, group: int) -> jax.Array:
    """Mean score of each group of inputs, ``[groups, out]``."""
    return jnp.mean(scores.reshape(-1, group, scores.shape[1]), axis=1)


def kept_count(total: int, sparsity: float) -> int:
    """How many of ``total`` groups stay when ``round(sparsity * total)`` are dropped.

    Raises:
      ValueError: when none would.
    """
    count = total - round(sparsity * total)
    if count < 1:
        raise ValueError(f"sparsity={sparsity} leaves none of {total} groups")
    return count


def keep_in_outputs(scores: jax.Array, count: int) -> jax.Array:
    """The ``count`` best groups of every output, int32 ``[count, out]``, ascending."""
    best = jax.lax.top_k(scores.T, count)[1]
    return jnp.sort(best.astype(jnp.int32), axis=1).T


def keep_in_matrix(scores: jax.Array, count: int, least: int = 0) -> jax.Array:
    """The ``count`` best groups of a matrix, int32 ``[count]``, ascending ``output * groups + group``.

    Args:
      scores: ``[groups, out]``.
      count: groups to keep.
      least: the best groups that every output keeps whatever the others score.

    Raises:
      ValueError: when ``least`` asks for more than there are, or than ``count``.
    """
    groups, cols = scores.shape
    if least > groups or least * cols > count:
        raise ValueError(f"least={least} groups in each of {cols} outputs exceed the {count} kept, or the {groups}")
    if least:
        rank = jnp.argsort(jnp.argsort(-scores, axis=0, stable=True), axis=0, stable=True)
        scores = jnp.where(rank < least, jnp.inf, scores)
    return jnp.sort(jax.lax.top_k(scores.T.reshape(-1), count)[1].astype(jnp.int32))


def group_mask(kept: jax.Array, groups: int, cols: int) -> jax.Array:
    """What :func:`keep_in_outputs` or :func:`keep_in_matrix` chose, as bool ``[groups, out]``."""
    none = jnp.zeros((cols, groups), jnp.bool_)
    if kept.ndim == 2:
        return none.at[jnp.arange(cols)[None], kept].set(True).T
    return none.reshape(-1).at[kept].set(True).reshape(cols, groups).T


def keep_n_of_m(scores: jax.Array, n: int, m: int) -> jax.Array:
    """Positions of the ``n`` best in every ``m`` inputs, int32 ``[in/m, n, out]``, ascending."""
    blocks = jnp.swapaxes(scores.reshape(-1, m, scores.shape[1]), 1, 2)
    best = jax.lax.top_k(blocks, n)[1]
    return jnp.swapaxes(jnp.sort(best.astype(jnp.int32), axis=2), 1, 2)


def n_m_mask(positions: jax.Array, m: int) -> jax.Array:
    """What :func:`keep_n_of_m` chose, as bool ``[in, out]``."""
    blocks, _, cols = positions.shape
    here = positions[:, :, None, :] == jnp.arange(m, dtype=jnp.int32)[None, None, :, None]
    return jnp.any(here, axis=1).reshape(blocks * m, cols)
