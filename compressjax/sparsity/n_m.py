"""N:M pruning with quantised survivors, the pattern that sparse tensor cores run: the baseline of group sparsity.

Of every ``m`` inputs of an output the ``n`` with the best score stay (Mishra et al., 2021, arXiv 2104.08378), with the
score of Wanda (Sun et al., 2023, arXiv 2306.11695) and the error-compensating sweep of SparseGPT (Frantar and Alistarh,
2023, arXiv 2301.00774), which prunes and rounds in one pass. SparseGPT chooses its mask on the way; here it is chosen
beforehand, as in GQSA, so that the two differ in the pattern only.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import MatrixInfo, leaf_rule, shared_rule, statistic_for
from compressjax.leaf import pack_affine
from compressjax.leaf.n_m import NMSparse, check_n_m, pack_n_m
from compressjax.quantization.hessian_plan import hessian_plan, plan_info
from compressjax.quantization.rtn import dense_weight
from compressjax.sparsity.gqsa_config import BQPO, check_pruning_fields
from compressjax.sparsity.gqsa_mask import keep_n_of_m, n_m_mask, weight_scores
from compressjax.sparsity.masked_init import masked_init, rounded_as_it_is


@dataclasses.dataclass(frozen=True, kw_only=True)
class NM:
    """N:M pruning, survivors in few bits.

    Attributes:
      n, m: weights kept of every ``m`` inputs.
      bits: code width, 2 to 8.
      group: inputs, kept or not, that share a scale and a zero; a multiple of ``m``.
      score, init, refine, order, grid, mse_norm, mse_steps, mse_max_shrink, damp, damp_step, scale_dtype, bqpo:
        as in ``GQSA``.
    """

    n: int = 2
    m: int = 4
    bits: int = 4
    group: int = 128
    score: Literal["wanda", "obs", "magnitude"] = "wanda"
    init: Literal["sweep", "ls", "mask"] = "sweep"
    refine: int = 16
    order: Literal["none", "group_aware"] = "group_aware"
    grid: Literal["minmax", "mse", "hessian"] = "minmax"
    mse_norm: float = 2.4
    mse_steps: int = 100
    mse_max_shrink: float = 0.8
    damp: float = 0.01
    damp_step: float = 0.01
    scale_dtype: str = "float16"
    bqpo: BQPO = BQPO()

    def __post_init__(self):
        check_pruning_fields(self)
        check_n_m(self.m, self.n, self.m)
        if self.group != -1 and self.group % self.m:
            raise ValueError(f"NM.group must be -1 (all inputs) or a multiple of m={self.m}, got {self.group}")


def n_m_shared(ws: tuple[jax.Array, ...], stats: Record, cfg: NM) -> tuple[tuple[NMSparse, MatrixInfo], ...]:
    """Prunes and quantises weights that read the same input, with one factor and one sweep for all.

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``xtx`` of their input.
      cfg: the options; its recovery stage is not run here.

    Returns:
      Per weight an ``NMSparse`` leaf with ``Affine`` values and its :class:`MatrixInfo`, in which ``rounding_error`` is
      that of keeping the largest weights and rounding them to nearest.

    Raises:
      ValueError: when ``m`` does not divide the inputs, or statistics do not fit.
      TypeError: for weights that are compressed already.
    """
    dense = [dense_weight(w, cfg) for w in ws]
    plan = hessian_plan(stats, method="NM", group=cfg.group, order=cfg.order, damp=cfg.damp, damp_step=cfg.damp_step)
    width = plan.h.shape[0]
    check_n_m(width, cfg.n, cfg.m)
    if any(w.shape[0] != width for w in dense):
        raise ValueError(f"Hessian is for {width} inputs, weights have {[w.shape[0] for w in ws]}")
    original = jnp.concatenate(dense, axis=1)
    w = jnp.where(plan.dead[:, None], 0, original)
    positions = keep_n_of_m(weight_scores(w, plan, cfg.score), cfg.n, cfg.m)
    codes, rounded, grid = masked_init(w, n_m_mask(positions, cfg.m), plan, cfg)
    largest = n_m_mask(keep_n_of_m(original**2, cfg.n, cfg.m), cfg.m)
    plain = rounded_as_it_is(original, largest, plan.group, cfg).weight
    short = jnp.take_along_axis(codes.reshape(-1, cfg.m, codes.shape[1]), positions, axis=1).reshape(-1, codes.shape[1])
    flat = positions.reshape(short.shape)
    out, at = [], 0
    for one in dense:
        cut = slice(at, at + one.shape[1])
        at += one.shape[1]
        values = pack_affine(
            short[:, cut],
            grid.scale[:, cut].astype(cfg.scale_dtype),
            grid.zero[:, cut],
            bits=cfg.bits,
            group=plan.group // cfg.m * cfg.n,
            zero_kind="int",
        )
        leaf = pack_n_m(values, flat[:, cut], n=cfg.n, m=cfg.m)
        out.append((leaf, plan_info(original[:, cut], rounded[:, cut], plain[:, cut], plan)))
    return tuple(out)


def n_m(w: jax.Array, stats: Record, cfg: NM) -> tuple[NMSparse, MatrixInfo]:
    """Prunes and quantises one weight ``[in, out]``; see :func:`n_m_shared`."""
    return n_m_shared((w,), stats, cfg)[0]


@leaf_rule.register(NM)
def _(w, cfg, stats, key):
    return n_m(w, stats, cfg)


@shared_rule.register(NM)
def _(ws, cfg, stats, key):
    return n_m_shared(ws, stats, cfg)


@statistic_for.register(NM)
def _(cfg):
    return Hessian()
