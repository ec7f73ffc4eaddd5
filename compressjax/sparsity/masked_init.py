"""Codes for the weights that a mask keeps: by rounding, by least squares and rounding, or by one sweep."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.numerics import grids
from compressjax.numerics.sweep import sweep
from compressjax.quantization import gptq_grid
from compressjax.quantization.hessian_plan import HessianPlan
from compressjax.quantization.rtn import RTN, round_groups


class Rounded(NamedTuple):
    """A pruned and rounded matrix.

    Attributes:
      codes: ``[in, out]``, float32 with integer values; those of pruned weights decode to 0 or mean nothing.
      weight: ``[in, out]``, exactly 0 where pruned.
      grid: ``[groups, out]``.
    """

    codes: jax.Array
    weight: jax.Array
    grid: grids.Grid


def masked_init(w: jax.Array, mask: jax.Array, plan: HessianPlan, cfg: Any) -> Rounded:
    """Prunes and rounds one matrix as ``cfg.init`` says.

    Args:
      w: float32 ``[in, out]``, dead inputs already 0.
      mask: bool ``[in, out]``, weights that stay.
      plan: of the inputs.
      cfg: a ``GQSA`` or ``NM`` (their common fields).
    """
    damped = plan.h + jnp.diag(plan.factor.damping)
    if cfg.init == "sweep":
        if cfg.refine:
            w = refined(w, mask, damped, cfg.refine)
        return _sweep(w, mask, plan, cfg)
    if cfg.init == "ls":
        w = least_squares(w, mask, damped)
    return rounded_as_it_is(w, mask, plan.group, cfg, cfg.grid)


def rounded_as_it_is(w: jax.Array, mask: jax.Array, group: int, cfg: Any, grid: str = "minmax") -> Rounded:
    """The kept weights rounded to nearest; every grid holds zero, so pruned ones decode to it."""
    plain = RTN(
        bits=cfg.bits,
        group=group,
        grid="mse" if grid == "mse" else "minmax",
        mse_norm=cfg.mse_norm,
        mse_steps=cfg.mse_steps,
        mse_max_shrink=cfg.mse_max_shrink,
        scale_dtype=cfg.scale_dtype,
    )
    return Rounded(*round_groups(jnp.where(mask, w, 0), group, plain))


def least_squares(w: jax.Array, mask: jax.Array, h: jax.Array) -> jax.Array:
    """The kept weights that minimise ``tr((W - Q)ᵀ H (W - Q))``: ``q_S = (H_SS)⁻¹ (H w)_S`` per output.

    Solved at full width with the pruned rows and columns replaced by those of the identity, one output at a time, so
    that supports of any size have one static shape; ``O(out * in³)``.

    Args:
      w: ``[in, out]``.
      mask: bool ``[in, out]``.
      h: positive definite ``[in, in]``.
    """
    pull = jnp.matmul(h, w, precision="highest")

    def one(args):
        keep, right = args
        inside = keep[:, None] & keep[None, :]
        matrix = jnp.where(inside, h, jnp.eye(h.shape[0], dtype=h.dtype))
        factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
        return jax.scipy.linalg.cho_solve(factor, jnp.where(keep, right, 0))

    return jnp.where(mask, jax.lax.map(one, (mask.T, pull.T)).T, 0)


def refined(w: jax.Array, mask: jax.Array, h: jax.Array, steps: int) -> jax.Array:
    """:func:`least_squares` to the accuracy of some steps of conjugate gradients, all outputs at once.

    Preconditioned by the diagonal and started at the masked weight, so that every step lowers the loss of every output;
    ``O(steps * out * in²)``. The sweep that follows then has only rounding to compensate.

    Args:
      w: ``[in, out]``.
      mask: bool ``[in, out]``.
      h: positive definite ``[in, in]``.
      steps: number of steps.

    Returns:
      ``[in, out]``, 0 where pruned.
    """
    scale = 1 / jnp.diagonal(h)[:, None]

    def apply(a):
        return jnp.where(mask, jnp.matmul(h, a, precision="highest"), 0)

    def dots(a, b):
        return jnp.sum(a * b, axis=0, keepdims=True)

    start = jnp.where(mask, w, 0)
    residual = apply(w - start)
    direction = scale * residual

    def step(_, state):
        q, residual, direction, size = state
        image = apply(direction)
        curve = dots(direction, image)
        # An output that has converged divides zero by zero; it then stays.
        rate = jnp.where(curve > 0, size / jnp.where(curve > 0, curve, 1), 0)
        q, residual = q + rate * direction, residual - rate * image
        new = dots(residual, scale * residual)
        turn = jnp.where(size > 0, new / jnp.where(size > 0, size, 1), 0)
        return q, residual, scale * residual + turn * direction, new

    return jax.lax.fori_loop(0, steps, step, (start, residual, direction, dots(residual, direction)))[0]


def _sweep(w, mask, plan: HessianPlan, cfg) -> Rounded:
    """The sweep of GPTQ in which pruned weights round to 0, so that their loss, too, is pushed onto later inputs.

    Each group's grid is fitted when the sweep reaches it, on what then remains of its kept weights.
    """
    width, cols = w.shape
    group, groups = plan.group, -(-width // plan.group)
    importance = grids.grouped(1 / jnp.diagonal(plan.factor.u)[:, None] ** 2, group)
    keep = mask[plan.perm]
    keep_blocks = jnp.pad(keep, ((0, groups * group - width), (0, 0))).reshape(groups, group, cols)
    options = _Grids(cfg.bits, cfg.grid, cfg.mse_norm, cfg.mse_steps, cfg.mse_max_shrink, cfg.scale_dtype)

    def start_block(rows, b, state):
        grid = gptq_grid.fit_uniform(jnp.where(keep_blocks[b], rows, 0), importance[b], options)
        return grids.Grid(*(old.at[b].set(new) for old, new in zip(state, grid, strict=True)))

    def round_row(row, i, state):
        at = i // group
        q, codes = gptq_grid.round_to_grid(row, grids.Grid(state.scale[at], state.zero[at]), cfg.bits)
        here = keep[jnp.minimum(i, width - 1)]
        return jnp.where(here, q, 0), jnp.where(here, codes, state.zero[at]), state

    blank = grids.Grid(jnp.ones((groups, cols), jnp.float32), jnp.zeros((groups, cols), jnp.float32))
    out = sweep(w[plan.perm], plan.factor.u, round_row, blank, block=group, start_block=start_block)
    back, grid = jnp.argsort(plan.perm), out.state
    if cfg.order != "none":
        whole = width // group
        visited = plan.perm[: whole * group : group] // group
        order = jnp.concatenate([jnp.argsort(visited), jnp.arange(whole, groups)])
        grid = grids.Grid(grid.scale[order], grid.zero[order])
    return Rounded(out.codes[back], out.weight[back], grid)


class _Grids(NamedTuple):
    """What fitting a grid reads of a config; always asymmetric, as zero has a code of its own there."""

    bits: int
    grid: str
    mse_norm: float
    mse_steps: int
    mse_max_shrink: float
    scale_dtype: str
    sym: bool = False
