"""SpQR: tiny groups with quantised statistics, and single weights that the grids serve badly kept as they are.

The sweep is GPTQ's (``numerics.sweep``). At each group of inputs, weights whose absence would lower the group's error
by more than a threshold are left out of the fit; while sweeping, a weight whose own error ``((w - ŵ)/U_ii)²`` exceeds
the threshold is an outlier: what its code misses is stored in 16 bits beside it, so only the rest is compensated.
Dettmers et al., 2023, arXiv 2306.03078.

Departures from the reference code: outliers are stored as residuals of the decoded weight, not as raw weights that a
decoder adds onto a nonzero code; grids of statistics are rounded to float16 before the sweep uses them; groups of equal
weights and runs of equal statistics get a grid that holds them instead of one from -1 to 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import leaf_rule, shared_rule, statistic_for
from compressjax.leaf.affine import pack_affine
from compressjax.leaf.outliers import pack_outliers
from compressjax.leaf.sum import add
from compressjax.leaf.two_level import pack_two_level
from compressjax.numerics import grids
from compressjax.numerics.linalg import quadratic
from compressjax.numerics.sweep import sweep
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan
from compressjax.quantization.rank_order import spearman_order
from compressjax.quantization.rtn import dense_weight
from compressjax.quantization.spqr_config import SpQR
from compressjax.quantization.spqr_grid import Statistics, decode, encode, fit_group, integer_zeros
from compressjax.quantization.visiting_order import visiting_order

# Range of relative thresholds that a share is searched in, as powers of two.
_LEAST, _MOST = -8.0, 6.0


class SpQRInfo(NamedTuple):
    """What is reported of one matrix; scalars, stacked over layers.

    Attributes:
      error, rounding_error, energy, damp, dead, fallback: as in ``driver.MatrixInfo``.
      threshold: the squared error, in units of the Hessian, above which a weight was an outlier at last.
      flagged: how many weights exceeded the threshold that was asked for.
      kept: how many are stored as outliers; fewer than ``flagged`` where the capacity did not suffice.
    """

    error: jax.Array
    rounding_error: jax.Array
    energy: jax.Array
    damp: jax.Array
    dead: jax.Array
    fallback: jax.Array
    threshold: jax.Array
    flagged: jax.Array
    kept: jax.Array


class _Swept(NamedTuple):
    """One sweep in visiting order.

    Attributes:
      codes, weight: ``[in, out]``, the rounded weight with its outliers.
      values: residuals of the outliers, 0 elsewhere, ``[in, out]``.
      statistics: per group of inputs.
      used, flagged: number of outliers, and of weights that exceeded the threshold.
    """

    codes: jax.Array
    weight: jax.Array
    values: jax.Array
    statistics: Statistics
    used: jax.Array
    flagged: jax.Array


class _State(NamedTuple):
    statistics: Statistics
    grid: grids.Grid
    values: jax.Array
    used: jax.Array
    flagged: jax.Array


def _plan(stats: Record, xtx: jax.Array, cfg: SpQR, perm: jax.Array) -> HessianPlan:
    """Plan of the inputs already in visiting order."""
    ordered = Record(count=stats.count, xtx=xtx[perm][:, perm])
    return hessian_plan(ordered, method="SpQR", group=cfg.group, order="none", damp=cfg.damp, damp_step=cfg.damp_step)


def threshold_unit(w: jax.Array, plan: HessianPlan) -> jax.Array:
    """What relative thresholds are multiplied by: ``mean_i var(w_i) / U_ii²``, the unbiased variance over outputs."""
    centred = w - jnp.mean(w, axis=1, keepdims=True)
    variance = jnp.sum(centred**2, axis=1) / max(1, w.shape[1] - 1)
    return jnp.mean(variance / jnp.diagonal(plan.factor.u) ** 2)


def _largest(flag: jax.Array, excess: jax.Array, room: jax.Array) -> jax.Array:
    """The ``room`` largest of the flagged entries of a row, or all of them."""

    def some(flag, excess, room):
        order = jnp.argsort(jnp.where(flag, -excess, jnp.inf), stable=True)
        rank = jnp.zeros(flag.shape, jnp.int32).at[order].set(jnp.arange(flag.shape[0], dtype=jnp.int32))
        return flag & (rank < room)

    return jax.lax.cond(
        jnp.sum(flag, dtype=jnp.int32) > room, some, lambda flag, excess, room: flag, flag, excess, room
    )


def _sweep(w: jax.Array, plan: HessianPlan, threshold: jax.Array, limit: jax.Array, cfg: SpQR) -> _Swept:
    """Sweeps weights ``[in, out]`` that are in visiting order; never more than ``limit`` outliers."""
    width, cols = w.shape
    group = plan.group
    groups, runs = -(-width // group), -(-cols // cfg.stat_group)
    padded = groups * group
    pivots = jnp.pad(jnp.diagonal(plan.factor.u), (0, padded - width), constant_values=1)

    def start_block(rows, b, state):
        at = b * group + jnp.arange(group)
        own = jax.lax.dynamic_slice_in_dim(pivots, b * group, group)[:, None]
        found, grid = fit_group(rows, own, (at < width)[:, None], threshold, limit - state.used, cfg)
        statistics = Statistics(*(old.at[b].set(new) for old, new in zip(state.statistics, found, strict=True)))
        return state._replace(statistics=statistics, grid=grid)

    def round_row(row, i, state):
        codes = encode(row, state.grid, cfg.bits)
        base = decode(codes, state.grid)
        if not cfg.has_outliers:
            return base, codes, state
        most = jnp.float32(jnp.finfo(cfg.value_dtype).max)
        residual = jnp.clip(row - base, -most, most).astype(cfg.value_dtype).astype(jnp.float32)
        excess = ((row - base) / pivots[i]) ** 2
        flag = (excess > threshold) & (residual != 0) & (i < width)
        values = jnp.where(_largest(flag, excess, limit - state.used), residual, 0)
        counts = {
            "used": state.used + jnp.sum(values != 0, dtype=jnp.int32),
            "flagged": state.flagged + jnp.sum(flag, dtype=jnp.int32),
        }
        return base + values, codes, state._replace(values=state.values.at[i].set(values), **counts)

    per_group, per_run = jnp.zeros((groups, cols), jnp.float32), jnp.zeros((groups, runs), jnp.float32)
    start = _State(
        statistics=Statistics(per_group, per_group, per_run, per_run, per_run, per_run),
        grid=grids.Grid(jnp.ones((cols,), jnp.float32), jnp.zeros((cols,), jnp.float32)),
        values=jnp.zeros((padded if cfg.has_outliers else 0, cols), jnp.float32),
        used=jnp.int32(0),
        flagged=jnp.int32(0),
    )
    out = sweep(w, plan.factor.u, round_row, start, block=group, start_block=start_block)
    last = out.state
    return _Swept(out.codes, out.weight, last.values[:width], last.statistics, last.used, last.flagged)


def threshold_for_share(w: jax.Array, plan: HessianPlan, cfg: SpQR, share: float) -> jax.Array:
    """The threshold at which about ``share`` of the weights are outliers, by bisection of its logarithm.

    Args:
      w: ``[in, out]`` in the plan's order.
      plan: of the inputs.
      cfg: the grids, ``bisections`` and ``share_outputs``.
      share: wanted, of all weights.

    Returns:
      float32 scalar, from the side of too few; at most ``2**6`` times :func:`threshold_unit`.
    """
    unit = threshold_unit(w, plan)
    width, cols = w.shape
    whole = max(1, cols // cfg.stat_group)
    runs = min(whole, -(-cfg.share_outputs // cfg.stat_group))
    first = jnp.arange(runs) * whole // runs * cfg.stat_group
    some = w[:, (first[:, None] + jnp.arange(min(cols, cfg.stat_group))[None]).reshape(-1)]
    target = jnp.float32(share * some.size)

    def step(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        used = _sweep(some, plan, unit * 2.0**middle, jnp.int32(some.size), cfg).used
        too_many = used.astype(jnp.float32) > target
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    bounds = jnp.float32(_LEAST), jnp.float32(_MOST)
    return unit * 2.0 ** jax.lax.fori_loop(0, cfg.bisections, step, bounds)[1]


def _within_capacity(w, plan, threshold, cfg):
    """A sweep with at most as many outliers as there is room for, its threshold, and how many the given one flagged.

    When there are too many, the threshold is raised to where about as many as there is room for remain, and the sweep
    is done again; what still does not fit is quantised in that sweep, where inputs that matter least come last.
    """
    slots = cfg.slots(w.size)
    if slots == w.size or cfg.outlier_share is not None:
        found = _sweep(w, plan, threshold, jnp.int32(slots), cfg)
        return found, threshold, found.flagged

    def attempt(state):
        number, threshold, _, flagged = state
        # The first sweep is free to keep all, so that it counts what the threshold flags.
        limit = jnp.where(number == 0, w.size, slots).astype(jnp.int32)
        found = _sweep(w, plan, threshold, limit, cfg)
        flagged = jnp.where(number == 0, found.flagged, flagged)
        higher = jax.lax.cond(
            found.used > slots, lambda: threshold_for_share(w, plan, cfg, slots / w.size), lambda: threshold
        )
        return number + 1, jnp.maximum(threshold, higher), found, flagged

    shapes = jax.eval_shape(lambda t: _sweep(w, plan, t, jnp.int32(0), cfg), threshold)
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    start = jnp.int32(0), threshold, blank, jnp.int32(0)
    _, threshold, found, flagged = jax.lax.while_loop(lambda s: (s[0] == 0) | (s[2].used > slots), attempt, start)
    return found, threshold, flagged


def _packed(found: _Swept, perm: jax.Array, cfg: SpQR, group: int) -> Any:
    width, cols = found.codes.shape
    back = jnp.argsort(perm)
    ordered = cfg.order != "identity"
    s = found.statistics
    if cfg.stat_bits is None:
        whole = pack_affine(
            found.codes[back],
            s.scale_codes.astype(jnp.float16),
            None if cfg.sym else s.zero_codes.astype(jnp.float16),
            bits=cfg.bits,
            group=group,
            zero_kind="none" if cfg.sym else "real",
            g_idx=(back // group).astype(jnp.int32) if ordered and group < width else None,
        )
    else:
        half = [a.astype(jnp.float16) for a in (s.scale_scale, s.scale_zero, s.zero_scale, s.zero_zero)]
        whole = pack_two_level(
            found.codes,
            s.scale_codes,
            s.zero_codes,
            (half[0], half[1]),
            None if integer_zeros(cfg) else (half[2], half[3]),
            bits=cfg.bits,
            scale_bits=cfg.stat_bits,
            zero_bits=cfg.bits if integer_zeros(cfg) else cfg.stat_bits,
            group=group,
            stat_group=cfg.stat_group,
            perm=perm if ordered else None,
        )
    if not cfg.has_outliers:
        return whole
    values = found.values[back].astype(cfg.value_dtype)
    return add(whole, pack_outliers(values != 0, values, cfg.slots(width * cols)))


def _one(w: jax.Array, plan: HessianPlan, perm: jax.Array, cfg: SpQR) -> tuple[Any, SpQRInfo]:
    w = w[perm]
    if not cfg.has_outliers:
        threshold, flagged = jnp.float32(jnp.inf), jnp.int32(0)
        found = _sweep(w, plan, threshold, jnp.int32(0), cfg)
    else:
        share = cfg.outlier_share
        threshold = threshold_unit(w, plan) * cfg.tau if share is None else threshold_for_share(w, plan, cfg, share)
        found, threshold, flagged = _within_capacity(w, plan, threshold, cfg)
    blocks = grids.grouped(w, plan.group)
    grid = grids.minmax_grid(blocks, cfg.bits, sym=cfg.sym)
    wide = grids.Grid(grid.scale[:, None], grid.zero[:, None])
    plain = grids.decode(grids.encode(blocks, wide, cfg.bits), wide).reshape(-1, w.shape[1])[: w.shape[0]]
    info = SpQRInfo(
        error=quadratic(w - found.weight, plan.raw),
        rounding_error=quadratic(w - plain, plan.raw),
        energy=quadratic(w, plan.raw),
        damp=plan.factor.damp,
        dead=jnp.sum(plan.dead, dtype=jnp.int32),
        fallback=plan.fallback,
        threshold=threshold,
        flagged=flagged,
        kept=found.used,
    )
    return _packed(found, perm, cfg, plan.group), info


def spqr_shared(ws: tuple[jax.Array, ...], stats: Record, cfg: SpQR) -> tuple[tuple[Any, SpQRInfo], ...]:
    """Quantises weights that read the same input; they share the Hessian's factor, but for order "spearman".

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``xtx`` of their input.
      cfg: the options.

    Returns:
      Per weight its leaf and its :class:`SpQRInfo`. The leaf is a ``TwoLevelAffine`` (``Affine`` with real zeros for
      ``stat_bits=None``), or the ``Sum`` of one and ``Outliers``.

    Raises:
      ValueError: when the statistics lack the Hessian or do not fit the weights.
    """
    dense = [dense_weight(w, cfg) for w in ws]
    if stats is None or stats.xtx is None:
        raise ValueError("SpQR needs Hessian statistics: record.xtx is missing")
    width = stats.xtx.shape[0]
    if any(w.ndim != 2 or w.shape[0] != width for w in dense):
        raise ValueError(f"Hessian is for {width} inputs, weights have shapes {[w.shape for w in dense]}")
    if cfg.order == "spearman":
        perms = [spearman_order(w) for w in dense]
        return tuple(
            _one(w, _plan(stats, stats.xtx, cfg, perm), perm, cfg) for w, perm in zip(dense, perms, strict=True)
        )
    diagonal = jnp.diagonal(stats.xtx)
    # Inputs that never fired count as 1, as in the factor.
    order = "act" if cfg.order == "act" else "none"
    perm = visiting_order(jnp.where(diagonal == 0, 1, diagonal), order, cfg.group)
    plan = _plan(stats, stats.xtx, cfg, perm)
    return tuple(_one(w, plan, perm, cfg) for w in dense)


def spqr(w: jax.Array, stats: Record, cfg: SpQR) -> tuple[Any, SpQRInfo]:
    """Quantises one weight ``[in, out]``; see :func:`spqr_shared`."""
    return spqr_shared((w,), stats, cfg)[0]


@leaf_rule.register(SpQR)
def _(w, cfg, stats, key):
    return spqr(w, stats, cfg)


@shared_rule.register(SpQR)
def _(ws, cfg, stats, key):
    return spqr_shared(ws, stats, cfg)


@statistic_for.register(SpQR)
def _(cfg):
    return Hessian()
