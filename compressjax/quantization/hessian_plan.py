"""What error-compensating methods derive from a layer's inputs, and what they report about a matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo
from compressjax.numerics.linalg import Factor, hessian_factor, quadratic
from compressjax.quantization.visiting_order import visiting_order


class HessianPlan(NamedTuple):
    """What depends on the inputs alone, shared by all weights that read them.

    Attributes:
      raw: the Hessian as it was gathered, ``[in, in]``.
      h: the same with dead inputs isolated (unit diagonal).
      dead: bool ``[in]``, inputs that never fired.
      perm: int32 ``[in]``, the input visited ``j``-th.
      factor: of the damped, permuted Hessian; the identity under ``fallback``.
      group: inputs per group.
      fallback: whether the method has to round to nearest instead.
    """

    raw: jax.Array
    h: jax.Array
    dead: jax.Array
    perm: jax.Array
    factor: Factor
    group: int
    fallback: jax.Array

    @property
    def importance(self) -> jax.Array:
        """``1 / U_ii²`` per input, unpermuted: how much the sweep will weigh an error there, ``[in]``."""
        weight = 1 / jnp.diagonal(self.factor.u) ** 2
        return jnp.zeros_like(weight).at[self.perm].set(weight)


def hessian_plan(
    stats: Record | None,
    *,
    method: str,
    group: int,
    order: str = "act",
    damp: float = 0.01,
    damp_step: float = 0.01,
    min_tokens: float = 0.0,
) -> HessianPlan:
    """Orders the inputs and factors their damped Hessian.

    Args:
      stats: with ``xtx`` (and ``count``, for ``min_tokens``).
      method: who asks, for messages.
      group: inputs per group; -1 or more than there are for all.
      order: as ``visiting_order``.
      damp, damp_step: as ``hessian_factor``.
      min_tokens: fewer calibration tokens than this share of the inputs' width mean ``fallback``.

    Raises:
      ValueError: without ``xtx``.
    """
    if stats is None or stats.xtx is None:
        raise ValueError(f"{method} needs Hessian statistics: record.xtx is missing")
    raw = stats.xtx
    width = raw.shape[0]
    group = width if group == -1 else min(group, width)
    dead = jnp.diagonal(raw) == 0
    h = raw + jnp.diag(dead.astype(raw.dtype))
    perm = visiting_order(jnp.diagonal(h), order, group)
    factor = hessian_factor(h[perm][:, perm], damp, damp_step)
    fallback = ~factor.ok
    if min_tokens and stats.count is not None:
        fallback |= stats.count.astype(jnp.float32) < min_tokens * width
    # An identity factor pushes no error on: the sweep is then rounding to nearest.
    factor = factor._replace(u=jnp.where(fallback, jnp.eye(width, dtype=jnp.float32), factor.u))
    return HessianPlan(raw=raw, h=h, dead=dead, perm=perm, factor=factor, group=group, fallback=fallback)


def plan_info(original: jax.Array, rounded: jax.Array, plain: jax.Array, plan: HessianPlan) -> MatrixInfo:
    """What is reported of one matrix: its output error, that of ``plain`` rounding, and how the factor was reached."""
    return MatrixInfo(
        error=quadratic(original - rounded, plan.raw),
        rounding_error=quadratic(original - plain, plan.raw),
        energy=quadratic(original, plan.raw),
        damp=plan.factor.damp,
        dead=jnp.sum(plan.dead, dtype=jnp.int32),
        fallback=plan.fallback,
    )
