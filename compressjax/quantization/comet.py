"""COMET: INT4 weights, activations in blocks of 4 and 8 bits, one integer product (W4Ax).

The input's channels are sorted so that outliers share blocks (``comet_plan``), the weight's inputs follow, and the
weight is rounded to INT4 with one scale per block and output. Groups of the weight and blocks of the activation
coincide, so that a product of two blocks is a sum of integers times two scales (Zhao et al., 2024, "COMET: Towards
Practical W4A4KV4 LLMs Serving", arXiv 2410.12168). No code of the authors is public; where the paper leaves a choice,
the config says what is ours.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compressjax.calibration.joint import HessianAndMoments
from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, leaf_rule, shared_rule, statistic_for
from compressjax.leaf import Affine, W4Ax, pack_w4ax, unpack_codes
from compressjax.leaf.w4ax import check_activation_bits
from compressjax.numerics import grids
from compressjax.numerics.integer_blocks import BLOCKS
from compressjax.ops import dense
from compressjax.quantization.comet_plan import BlockPlan, block_width, fmpq_plan, most_wide_blocks
from compressjax.quantization.gptq import gptq_shared
from compressjax.quantization.gptq_config import GPTQ
from compressjax.quantization.rtn import RTN, affine_from_grid, dense_weight, output_errors, rtn


@dataclasses.dataclass(frozen=True, kw_only=True)
class COMET:
    """Block-wise mixed 4/8-bit activations over INT4 weights.

    Attributes:
      block: channels per block, 32, 64, 128 (the paper's) or 256; half of it where only the half divides the inputs.
      hi_bits, lo_bits: activation bits of wide and narrow blocks, 2 to 8, or 16 for activations that are all but
        exact.
      weight_bits: 4; the layout holds nothing else.
      max_hi_fraction: most wide blocks as a share of all, rounded down.
      rule: which blocks are wide: "outlier", those that outlier channels fill; "error", those with the largest
        predicted gain.
      tau: an outlier channel exceeds ``tau`` times the median channel maximum (ours).
      permute: sort the channels; otherwise only whole blocks move.
      weight_solver: "gptq" on the permuted Hessian, or "rtn" with a search for the range of
        least squared error, inputs weighted by their mean square.
      damp: relative damping of "gptq".
      act_clip: share of a block's range that activation codes span, in (0, 1].
      samples: rows kept per calibration batch to predict errors from (rule="error").
    """

    block: int = 128
    hi_bits: int = 8
    lo_bits: int = 4
    weight_bits: int = 4
    max_hi_fraction: float = 0.25
    rule: Literal["outlier", "error"] = "outlier"
    tau: float = 6.0
    permute: bool = True
    weight_solver: Literal["gptq", "rtn"] = "gptq"
    damp: float = 0.01
    act_clip: float = 1.0
    samples: int = 64

    def __post_init__(self):
        if self.block not in BLOCKS:
            raise ValueError(f"COMET.block must be one of {BLOCKS}, got {self.block}")
        check_activation_bits(self.hi_bits, self.lo_bits, self.act_clip, "COMET")
        if self.weight_bits != 4:
            raise ValueError(f"COMET.weight_bits must be 4, got {self.weight_bits}")
        if not 0 <= self.max_hi_fraction <= 1:
            raise ValueError(f"COMET.max_hi_fraction must be in [0, 1], got {self.max_hi_fraction}")
        for field, allowed in (("rule", ("outlier", "error")), ("weight_solver", ("gptq", "rtn"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"COMET.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if not self.tau >= 1:
            raise ValueError(f"COMET.tau must be >= 1, got {self.tau}")
        if not self.damp > 0:
            raise ValueError(f"COMET.damp must be > 0, got {self.damp}")
        if self.samples < 1:
            raise ValueError(f"COMET.samples must be >= 1, got {self.samples}")


def comet_shared(ws: tuple[jax.Array, ...], stats: Record | None, cfg: COMET) -> tuple[tuple[W4Ax, MatrixInfo], ...]:
    """Quantises weights that read the same input with one plan and, for "gptq", one factor.

    ``MatrixInfo.error`` is the weights' part of the error; what the activations add depends on the token.

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``abs_max``, ``xtx`` and ``count`` of their input, not None; ``samples`` for rule="error".
      cfg: the options.

    Raises:
      ValueError: when the statistics lack what the options need or do not fit the weights.
    """
    weights = [dense_weight(w, cfg) for w in ws]
    if stats is None or stats.xtx is None:
        raise ValueError("COMET needs HessianAndMoments statistics: record.xtx is missing")
    width = weights[0].shape[0]
    for name in ("xtx", "abs_max", "samples"):
        array = getattr(stats, name)
        if array is not None and any(w.shape[0] != array.shape[-1] for w in weights):
            raise ValueError(f"record.{name} is for {array.shape[-1]} inputs, weights have {[len(w) for w in weights]}")
    energy = sum((jnp.sum(w**2, axis=1) for w in weights), start=jnp.zeros((width,), jnp.float32))
    plan = fmpq_plan(stats, energy, cfg)
    permuted = tuple(w[plan.perm] for w in weights)
    h = stats.xtx[plan.perm][:, plan.perm]
    solve = _solve_gptq if cfg.weight_solver == "gptq" else _solve_rtn
    solved = solve(permuted, Record(xtx=h, count=stats.count), block_width(width, cfg), cfg)
    return tuple((_leaf(affine, plan, cfg), info) for affine, info in solved)


def _solve_gptq(ws, stats, block, cfg) -> tuple[tuple[Affine, MatrixInfo], ...]:
    # Left to right is the visiting order of falling size, for the plan has sorted the inputs.
    options = GPTQ(bits=4, group=block, sym=True, order="none", grid="hessian", damp=cfg.damp)
    return gptq_shared(ws, stats, options)


def _solve_rtn(ws, stats, block, cfg) -> tuple[tuple[Affine, MatrixInfo], ...]:
    return tuple(_round_one(w, stats.xtx, block) for w in ws)


def _round_one(w, h, block):
    plain = RTN(bits=4, group=block, sym=True)
    blocks, weight = grids.grouped(w, block), grids.grouped(jnp.diagonal(h)[:, None], block)
    # Unweighted, the search would clip the few weights that read the largest channels.
    grid = grids.mse_grid(blocks, 4, sym=True, norm=2, weight=weight)
    wide = grids.Grid(grid.scale[:, None, :], grid.zero[:, None, :])
    codes = grids.encode(blocks, wide, 4)
    searched = affine_from_grid(codes.reshape(-1, w.shape[1])[: w.shape[0]], grid, block, plain)
    error, rounding_error, energy = output_errors(w, dense(searched), dense(rtn(w, plain)), h)
    return searched, MatrixInfo(
        error=error,
        rounding_error=rounding_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=jnp.sum(jnp.diagonal(h) == 0, dtype=jnp.int32),
        fallback=jnp.bool_(False),
    )


def _leaf(affine: Affine, plan: BlockPlan, cfg: COMET) -> W4Ax:
    # Without sorting and without wide blocks the inputs are where they were.
    moved = cfg.permute or most_wide_blocks(affine.shape[0], cfg) > 0
    return pack_w4ax(
        unpack_codes(affine).astype(jnp.int32) - 8,
        affine.scale,
        plan.perm if moved else None,
        plan.n_hi,
        block=affine.group,
        hi_bits=cfg.hi_bits,
        lo_bits=cfg.lo_bits,
        act_clip=cfg.act_clip,
    )


def comet(w: jax.Array, stats: Record | None, cfg: COMET) -> tuple[W4Ax, MatrixInfo]:
    """Quantises one weight ``[in, out]``; see :func:`comet_shared`."""
    return comet_shared((w,), stats, cfg)[0]


@leaf_rule.register(COMET)
def _(w, cfg, stats: Record | None, key: Any):
    return comet(w, stats, cfg)


@shared_rule.register(COMET)
def _(ws, cfg, stats, key):
    return comet_shared(ws, stats, cfg)


@statistic_for.register(COMET)
def _(cfg):
    return HessianAndMoments(samples=cfg.samples if cfg.rule == "error" else 0)
