"""decoupleQ: low-bit uniform quantisation as one least-squares problem with an integer and a floating part.

With ``ŵ = s q + z``, ``q`` integer, ``s`` and ``z`` real per group and output, the layer's output error
``(ŵ - w)ᵀ H (ŵ - w)`` is lowered in turn over the integers at fixed ``(s, z)`` and over ``(s, z)`` at fixed integers,
the latter exactly (Guo et al., 2024, arXiv 2404.12759, eq. 6-10). An output takes a step only if its own error falls.
Then the block stage trains ``(s, z)`` and the norms against the block's original output (``training.block_tuning``).

Departures from the reference: float32 with a refinement step for float64; every step works on scales and zeros as they
will be stored, so that what is accepted is what is decoded; damping grows as in ``numerics.linalg.hessian_factor``; the
search for the shrunken range goes from coarse to fine unless ``shrink_stride=1``. ``polish`` and ``alpha``, off by
default, are additions.
"""

import dataclasses
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import MatrixInfo, block_rule, leaf_rule, shared_rule, statistic_for, wants_original
from compressjax.leaf import Affine, pack_affine
from compressjax.numerics.grids import Grid
from compressjax.quantization.decoupleq_config import DecoupleQ
from compressjax.quantization.decoupleq_grid import (
    between,
    by_group,
    decode_all,
    errors,
    minmax_ends,
    round_all,
    shrunken_grid,
    stored_grid,
)
from compressjax.quantization.decoupleq_integers import solve_integers
from compressjax.quantization.decoupleq_solve import solve_scale_offset
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan, plan_info
from compressjax.quantization.rtn import dense_weight


class Solution(NamedTuple):
    """A quantised weight and its error.

    Attributes:
      codes: unsigned, float32 ``[in, out]``.
      grid: as stored, float32 ``[groups, out]``.
      error: damped output error of every output, ``[out]``.
    """

    codes: jax.Array
    grid: Grid
    error: jax.Array


def objective_plan(stats: Record | None, cfg: DecoupleQ) -> HessianPlan:
    """Damped Hessian (``plan.h``), visiting order, and the factor of the Hessian damped once more.

    Raises:
      ValueError: without ``xtx``; outside of jit also when it is not symmetric, has a negative diagonal, or counts no
        tokens.
    """
    if stats is None or stats.xtx is None:
        raise ValueError("DecoupleQ needs Hessian statistics: record.xtx is missing")
    _check_hessian(stats)
    raw = stats.xtx
    damped = raw + cfg.damp * jnp.mean(jnp.diagonal(raw)) * jnp.eye(raw.shape[0])
    plan = hessian_plan(
        dataclasses.replace(stats, xtx=damped),
        method="DecoupleQ",
        group=cfg.group,
        order=cfg.order,
        damp=cfg.damp,
        damp_step=cfg.damp,
    )
    return plan._replace(raw=raw, dead=jnp.diagonal(raw) == 0)


def _check_hessian(stats):
    """Of concrete values only, in NumPy: under a jit around constants, jnp would make tracers of them."""
    if isinstance(stats.xtx, Tracer) or isinstance(stats.count, Tracer):
        return
    h = np.asarray(stats.xtx)
    if stats.count is not None and not float(stats.count) > 0:
        raise ValueError(f"record.count must be > 0 calibration tokens, got {float(stats.count)}")
    if np.any(np.diagonal(h) < 0):
        raise ValueError(f"record.xtx must have no negative diagonal, got {np.min(np.diagonal(h))}")
    if not np.max(np.abs(h - h.T)) <= 1e-4 * np.max(np.abs(h)):
        raise ValueError("record.xtx must be finite and symmetric; it differs from its transpose")


def alternate(w: jax.Array, plan: HessianPlan, cfg: DecoupleQ) -> tuple[Solution, Solution, jax.Array]:
    """The alternation of integer and floating parts on one weight.

    Args:
      w: ``[in, out]``, float32.
      plan: from :func:`objective_plan`.
      cfg: the options.

    Returns:
      The solution; plain min-max rounding, where it started; and the trace, float32
      ``[2 + 2 (max_iters - 1), out]``: every output's error after rounding, after the first integer step, and then
      after each integer step and closed form. It never rises, and stays level after an early stop.
    """
    group = plan.group

    def evaluated(codes, grid):
        return Solution(codes, grid, errors(w, decode_all(codes, grid, group), plan.h))

    def integers(grid):
        return evaluated(solve_integers(w, grid, plan, cfg), grid)

    def floats(codes, start):
        scale, offset = solve_scale_offset(w, codes, start, plan.h, group=group, sym=cfg.sym, out_chunk=cfg.out_chunk)
        mean = jnp.mean(by_group(codes, group), axis=1)
        return stored_grid(scale, offset, mean, bits=cfg.bits, sym=cfg.sym, dtype=cfg.scale_dtype)

    grid = between(*minmax_ends(w, group, cfg.sym), cfg.bits, cfg.sym, cfg.scale_dtype)
    rounded = evaluated(round_all(w, grid, cfg.bits, group), grid)
    best, _ = _accept(rounded, integers(grid))
    stages = 2 + 2 * (cfg.max_iters - 1)
    trace = jnp.full((stages, w.shape[1]), jnp.inf, jnp.float32)
    trace = trace.at[0].set(rounded.error).at[1].set(best.error)
    if cfg.max_iters == 1:
        return best, rounded, trace

    # The closed form of a shrunken range's rounding is a better place to start from than the min-max grid.
    shrunk = shrunken_grid(w, plan.h, group, cfg)
    seed = floats(round_all(w, shrunk, cfg.bits, group), shrunk)

    def goes_on(state):
        return state[-1] & (state[0] < stages)

    def turn(state):
        at, best, grid, trace, _ = state
        best, share = _accept(best, integers(grid))
        trace = trace.at[at].set(best.error)

        def solved(best):
            return _accept(best, evaluated(best.codes, floats(best.codes, best.grid)))

        best, next_share = jax.lax.cond(share >= cfg.stop_rate, solved, lambda b: (b, jnp.float32(0)), best)
        trace = trace.at[at + 1].set(best.error)
        return at + 2, best, best.grid, trace, next_share >= cfg.stop_rate

    start = jnp.int32(2), best, seed, trace, jnp.bool_(True)
    _, best, _, trace, _ = jax.lax.while_loop(goes_on, turn, start)
    return best, rounded, jax.lax.cummin(trace, axis=0)


def _accept(best, new):
    """Output by output the solution with less error, and the share of outputs that changed."""
    better = new.error < best.error
    chosen = jax.tree.map(lambda a, b: jnp.where(better if a.ndim == 1 else better[None], a, b), new, best)
    return chosen, jnp.mean(better.astype(jnp.float32))


def decoupleq_shared(
    ws: tuple[jax.Array, ...], stats: Record | None, cfg: DecoupleQ
) -> tuple[tuple[Affine, MatrixInfo], ...]:
    """Quantises weights that read the same input, with one factor and one alternation for all.

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``xtx`` of their input, and ``count``; ``dxxt`` too for ``cfg.alpha``.
      cfg: the options; the block stage is not run here.

    Returns:
      Per weight an :class:`Affine` leaf with a real zero (none with ``sym``), and its :class:`MatrixInfo`.

    Raises:
      ValueError: when ``group`` does not divide the inputs, or the statistics do not fit.
    """
    dense = [dense_weight(w, cfg) for w in ws]
    plan = objective_plan(stats, cfg)
    width = plan.h.shape[0]
    for w in dense:
        if w.ndim != 2 or w.shape[0] != width:
            raise ValueError(f"Hessian is for {width} inputs, weights have shapes {[w.shape for w in dense]}")
    if width % plan.group:
        raise ValueError(f"DecoupleQ.group={cfg.group} does not divide the {width} inputs of the weight")
    _warn_of_few_tokens(stats, width // plan.group)
    original = jnp.concatenate(dense, axis=1)
    best, plain, _ = alternate(_moved(original, stats, plan, cfg.alpha), plan, cfg)
    rounded = decode_all(best.codes, best.grid, plan.group)
    plain_rounded = decode_all(plain.codes, plain.grid, plan.group)
    out, at = [], 0
    for one in dense:
        cut = slice(at, at + one.shape[1])
        at += one.shape[1]
        leaf = pack_affine(
            best.codes[:, cut],
            best.grid.scale[:, cut].astype(cfg.scale_dtype),
            None if cfg.sym else best.grid.zero[:, cut].astype(cfg.scale_dtype),
            bits=cfg.bits,
            group=plan.group,
            zero_kind="none" if cfg.sym else "real",
        )
        out.append((leaf, plan_info(one, rounded[:, cut], plain_rounded[:, cut], plan)))
    return tuple(out)


def _moved(w, stats, plan, alpha):
    """``w + alpha H⁻¹ (sum x_q dxᵀ) w``: at alpha 1 the minimiser of ``|X_q ŵ - X_fp w|²``, dx being ``x_fp - x_q``."""
    if not alpha:
        return w
    if stats.dxxt is None:
        raise ValueError(
            f"DecoupleQ.alpha={alpha} needs record.dxxt: calibrate block by block, where both the uncompressed and the "
            "compressed network's inputs are known"
        )
    u = plan.factor.u
    pull = jnp.matmul(stats.dxxt.T, w, precision="highest")[plan.perm]
    step = jnp.matmul(u.T, jnp.matmul(u, pull, precision="highest"), precision="highest")
    return w + jnp.where(plan.fallback, 0, alpha) * jnp.zeros_like(w).at[plan.perm].set(step)


def _warn_of_few_tokens(stats, groups):
    count = stats.count
    if count is None or isinstance(count, Tracer) or float(count) >= 2 * groups:
        return
    warnings.warn(
        f"DecoupleQ: {int(count)} calibration tokens leave {2 * groups} scales and zeros per output to the damping",
        stacklevel=3,
    )


def decoupleq(w: jax.Array, stats: Record | None, cfg: DecoupleQ) -> tuple[Affine, MatrixInfo]:
    """Quantises one weight ``[in, out]``; see :func:`decoupleq_shared`."""
    return decoupleq_shared((w,), stats, cfg)[0]


@leaf_rule.register(DecoupleQ)
def _(w, cfg, stats, key):
    return decoupleq(w, stats, cfg)


@shared_rule.register(DecoupleQ)
def _(ws, cfg, stats, key):
    return decoupleq_shared(ws, stats, cfg)


@statistic_for.register(DecoupleQ)
def _(cfg):
    return Hessian()


@wants_original.register(DecoupleQ)
def _(cfg):
    return cfg.alpha > 0 or (cfg.tuning is not None and wants_original(cfg.tuning))


@block_rule.register(DecoupleQ)
def _(block: Any, cfg, dense_block, inputs, key):
    return block if cfg.tuning is None else block_rule(block, cfg.tuning, dense_block, inputs, key)
