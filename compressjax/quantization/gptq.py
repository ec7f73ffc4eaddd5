"""GPTQ: quantise inputs in order, pushing each one's rounding error onto the inputs still to come.

For a layer ``y = x w`` with ``H = sum x xᵀ``, the squared output error of ``Q`` is ``tr((W-Q)ᵀ H (W-Q))``. With
``H⁻¹ = Uᵀ U``, rounding input ``i`` and moving all later inputs by ``-U_ij (w_i - q_i) / U_ii`` is the exact minimiser
over the later inputs (Frantar et al., 2022, arXiv 2210.17323, eq. 2-3). The sweep is ``numerics.sweep``; here are the
grids, the visiting order, the asymmetric terms and the accounting.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import MatrixInfo, leaf_rule, shared_rule, statistic_for, wants_original
from compressjax.leaf import pack_codebook
from compressjax.numerics import grids
from compressjax.numerics.sweep import sweep
from compressjax.quantization import gptq_grid
from compressjax.quantization.gptq_config import GPTQ
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan, plan_info
from compressjax.quantization.rtn import RTN, affine_from_grid, dense_weight, round_groups


class _Inputs(NamedTuple):
    """The plan of the inputs, and the asymmetric term ``P`` in sweeping order, or None."""

    plan: HessianPlan
    drift: jax.Array | None


def _inputs(stats: Record, cfg: GPTQ) -> _Inputs:
    plan = hessian_plan(
        stats,
        method="GPTQ",
        group=cfg.group,
        order=cfg.order,
        damp=cfg.damp,
        damp_step=cfg.damp_step,
        min_tokens=cfg.min_tokens,
    )
    dxxt = stats.dxxt
    if cfg.asymmetric == "none":
        return _Inputs(plan, None)
    if dxxt is None:
        raise ValueError(
            f"GPTQ.asymmetric={cfg.asymmetric!r} needs record.dxxt: calibrate block by block, where both the "
            "uncompressed and the compressed network's inputs are known"
        )
    if cfg.asymmetric == "target":
        return _Inputs(plan, None)
    u, dead = plan.factor.u, plan.dead
    dx = jnp.where(dead[:, None] | dead[None, :], 0, dxxt)[plan.perm][:, plan.perm]
    upper = jnp.triu(jnp.matmul(dx, u.T, precision="highest"), 1)
    return _Inputs(plan, jnp.where(plan.fallback, 0, cfg.alpha) * jnp.matmul(upper, u, precision="highest"))


def _move_to_target(w, dxxt, plan: HessianPlan, alpha: float):
    """``w + alpha H⁻¹ dXᵀ w``: the minimiser of ``|X_q w* - X_fp w|²`` before rounding, for alpha = 1."""
    pull = jnp.matmul(jnp.where(plan.dead[:, None], 0, dxxt.T), w, precision="highest")[plan.perm]
    u = plan.factor.u
    step = jnp.matmul(u.T, jnp.matmul(u, pull, precision="highest"), precision="highest")
    return w + jnp.where(plan.fallback, 0, alpha) * jnp.zeros_like(w).at[plan.perm].set(step)


def _grouped_importance(plan: HessianPlan) -> jax.Array:
    return grids.grouped(plan.importance[:, None], plan.group)


def _sweep(w, inputs: _Inputs, cfg: GPTQ, levels, round_row, **options):
    plan = inputs.plan
    raw, pivots = w[plan.perm], jnp.diagonal(plan.factor.u)

    def first_order(e, row, i):
        at = jnp.minimum(i, raw.shape[0] - 1)
        return e - cfg.foem_beta * (row - raw[at]) / pivots[at]

    nudge = first_order if cfg.foem_beta else None
    out = sweep(raw, plan.factor.u, round_row, levels, drift=inputs.drift, nudge=nudge, **options)
    back = jnp.argsort(plan.perm)
    return out.codes[back], out.weight[back], out.state


def _uniform(w, inputs: _Inputs, cfg: GPTQ):
    """Rounded weight, and how to pack a range of its outputs, for uniform levels."""
    group = inputs.plan.group
    fit = _static_grids if cfg.static_groups or group == w.shape[0] else _grids_on_the_way
    codes, rounded, grid, g_idx = fit(w, inputs, cfg)

    def pack(cut):
        own = grids.Grid(grid.scale[:, cut], grid.zero[:, cut])
        return affine_from_grid(codes[:, cut], own, group, cfg, g_idx)

    return rounded, pack


def _static_grids(w, inputs: _Inputs, cfg: GPTQ):
    """Codes, rounded weight, grids and no group index, with grids fitted before the sweep."""
    plan = inputs.plan
    grid = gptq_grid.fit_uniform(grids.grouped(w, plan.group), _grouped_importance(plan), cfg)
    of_row = plan.perm // plan.group

    def round_row(row, i, state):
        at = of_row[jnp.minimum(i, w.shape[0] - 1)]
        return *gptq_grid.round_to_grid(row, grids.Grid(grid.scale[at], grid.zero[at]), cfg.bits), state

    codes, rounded, _ = _sweep(w, inputs, cfg, None, round_row, block=cfg.block)
    return codes, rounded, grid, None


def _grids_on_the_way(w, inputs: _Inputs, cfg: GPTQ):
    """The same with each group's grid fitted when the sweep reaches it; "act" order then needs a group index."""
    plan = inputs.plan
    width, cols = w.shape
    group, groups = plan.group, -(-width // plan.group)
    weight = grids.grouped(1 / jnp.diagonal(plan.factor.u)[:, None] ** 2, group)

    def start_block(rows, b, state):
        grid = gptq_grid.fit_uniform(rows, weight[b], cfg)
        return grids.Grid(*(old.at[b].set(new) for old, new in zip(state, grid, strict=True)))

    def round_row(row, i, state):
        at = i // group
        return *gptq_grid.round_to_grid(row, grids.Grid(state.scale[at], state.zero[at]), cfg.bits), state

    blank = grids.Grid(jnp.ones((groups, cols), jnp.float32), jnp.zeros((groups, cols), jnp.float32))
    codes, rounded, grid = _sweep(w, inputs, cfg, blank, round_row, block=group, start_block=start_block)
    if cfg.order == "act":
        return codes, rounded, grid, (jnp.argsort(plan.perm) // group).astype(jnp.int32)
    if cfg.order == "group_aware":
        whole = width // group
        visited = plan.perm[: whole * group : group] // group
        back = jnp.concatenate([jnp.argsort(visited), jnp.arange(whole, groups)])
        grid = grids.Grid(grid.scale[back], grid.zero[back])
    return codes, rounded, grid, None


def _table(w, inputs: _Inputs, cfg: GPTQ):
    """Rounded weight, and how to pack a range of its outputs, for table levels, refitted ``cfg.refits`` times."""
    plan = inputs.plan
    width, group = w.shape[0], plan.group
    blocks = grids.grouped(w, group)
    real = grids.grouped(jnp.ones((width, 1), jnp.float32), group)
    table = gptq_grid.stored_table(gptq_grid.fit_table(blocks, _grouped_importance(plan) * real, cfg), cfg.scale_dtype)
    of_row = plan.perm // group

    def swept(table):
        def round_row(row, i, state):
            return *gptq_grid.round_to_table(row, state[of_row[jnp.minimum(i, width - 1)]]), state

        codes, rounded, _ = _sweep(w, inputs, cfg, table, round_row, block=cfg.block)
        return codes, rounded

    damped = plan.h + jnp.diag(plan.factor.damping)

    def again(_, best):
        codes, rounded, table = best
        new = gptq_grid.refit_table(codes, w, damped, table, group, 1e-4)
        new = gptq_grid.stored_table(new, cfg.scale_dtype)
        new_codes, new_rounded = swept(new)
        # Kept output by output: the refit helps at fixed codes, the sweep that follows need not.
        old_loss = _per_output(w - rounded, damped)
        better = _per_output(w - new_rounded, damped) < old_loss
        return (
            jnp.where(better[None], new_codes, codes),
            jnp.where(better[None], new_rounded, rounded),
            jnp.where(better[None, None], new, table),
        )

    refits = cfg.refits if cfg.levels == "kmeans" else 0
    codes, rounded, table = jax.lax.fori_loop(0, refits, again, (*swept(table), table))

    def pack(cut):
        return pack_codebook(codes[:, cut], table[..., cut].astype(cfg.scale_dtype), group=group)

    return rounded, pack


def _per_output(error, h):
    return jnp.sum(error * jnp.matmul(h, error, precision="highest"), axis=0)


def gptq_shared(ws: tuple[jax.Array, ...], stats: Record, cfg: GPTQ) -> tuple[tuple[Any, MatrixInfo], ...]:
    """Quantises weights that read the same input, with one factor and one sweep for all.

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``xtx`` and ``count`` of their input; ``dxxt`` too for asymmetric calibration.
      cfg: the options.

    Returns:
      Per weight an ``Affine`` (or ``Codebook``) leaf and its :class:`MatrixInfo`.

    Raises:
      ValueError: when the statistics lack what the options need or do not fit the weights.
    """
    dense = [dense_weight(w, cfg) for w in ws]
    inputs = _inputs(stats, cfg)
    plan = inputs.plan
    if any(w.shape[0] != plan.h.shape[0] for w in ws):
        raise ValueError(f"Hessian is for {plan.h.shape[0]} inputs, weights have {[w.shape[0] for w in ws]}")
    original = jnp.concatenate(dense, axis=1)
    w = jnp.where(plan.dead[:, None], 0, original) if cfg.dead_inputs == "zero" else original
    if cfg.asymmetric == "target":
        w = _move_to_target(w, stats.dxxt, plan, cfg.alpha)
    plain = RTN(bits=cfg.bits, group=cfg.group, sym=cfg.sym, scale_dtype=cfg.scale_dtype)
    plain_rounded = round_groups(original, plan.group, plain)[1]

    rounded, pack = _uniform(w, inputs, cfg) if cfg.levels == "uniform" else _table(w, inputs, cfg)

    out, at = [], 0
    for one in ws:
        cut = slice(at, at + one.shape[1])
        at += one.shape[1]
        out.append((pack(cut), plan_info(original[:, cut], rounded[:, cut], plain_rounded[:, cut], plan)))
    return tuple(out)


def gptq(w: jax.Array, stats: Record, cfg: GPTQ) -> tuple[Any, MatrixInfo]:
    """Quantises one weight ``[in, out]``; see :func:`gptq_shared`."""
    return gptq_shared((w,), stats, cfg)[0]


@leaf_rule.register(GPTQ)
def _(w, cfg, stats, key):
    return gptq(w, stats, cfg)


@shared_rule.register(GPTQ)
def _(ws, cfg, stats, key):
    return gptq_shared(ws, stats, cfg)


@statistic_for.register(GPTQ)
def _(cfg):
    return Hessian()


@wants_original.register(GPTQ)
def _(cfg):
    return cfg.asymmetric != "none"
