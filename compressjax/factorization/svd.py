"""Truncated SVD of a weight, plain or with its inputs weighed: the baseline of every low-rank method."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian, Moments
from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.factorization.factors import check_rank_fields, rank_of, second_moment, stored
from compressjax.leaf.low_rank import LowRank
from compressjax.numerics.large_svd import is_large, product_error
from compressjax.numerics.whitened_svd import LowRankFit, scaled_fit, whiten, whitened_fit
from compressjax.ops import dense
from compressjax.quantization.rtn import dense_weight, output_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVD:
    """The best product of two thin matrices.

    Attributes:
      rank: columns of the left factor; None for what ``reduction`` says.
      reduction: the share of the smaller side that is given up.
      multiple: ranks from ``reduction`` are multiples of it.
      scale: "none": least weight error; "act": inputs weighed by their mean magnitude (ACT-S of EoRA's paper);
        "whiten": least output error, through the whole second moment (Δ = W in EoRA).
      dtype: of the factors.
      factors: a method that compresses both factors, or None.
    """

    rank: int | None = None
    reduction: float = 0.5
    multiple: int = 1
    scale: Literal["none", "act", "whiten"] = "none"
    dtype: str = "float16"
    factors: Any = None

    def __post_init__(self):
        check_rank_fields(self)
        if self.scale not in ("none", "act", "whiten"):
            raise ValueError(f"SVD.scale must be 'none', 'act' or 'whiten', got {self.scale!r}")


@leaf_rule.register(SVD)
def _(w, cfg, stats, key):
    w = dense_weight(w, cfg)
    rank = rank_of(cfg, *w.shape)
    plain = scaled_fit(w, None, rank)
    if cfg.scale == "none":
        fit = plain
    elif cfg.scale == "act":
        if stats is None or stats.abs_sum is None:
            raise ValueError("SVD.scale='act' needs Moments statistics: record.abs_sum is missing")
        fit = scaled_fit(w, stats.abs_sum, rank)
    else:
        fit = whitened_fit(w, whiten(second_moment(stats, cfg)), rank)
    leaf = stored(fit.left, fit.right, stats, cfg)
    return leaf, fit_info(w, leaf, plain, stats)


def fit_info(w: jax.Array, leaf: LowRank, plain: LowRankFit, stats: Record | None) -> MatrixInfo:
    """What is reported of a factorised weight; ``rounding_error`` is that of the plain SVD of the same rank."""
    h = None if stats is None else stats.xtx
    if h is None and is_large(w.shape, plain.left.shape[1]):
        # Neither product is made as a whole: each would be as large as the weight.
        error = product_error(w, dense(leaf.left).astype(jnp.float32), dense(leaf.right).astype(jnp.float32))
        plain_error, energy = product_error(w, plain.left, plain.right), jnp.sum(w**2)
    else:
        made = jnp.matmul(plain.left, plain.right, precision="highest")
        error, plain_error, energy = output_errors(w, dense(leaf), made, h)
    dead = jnp.int32(0) if h is None else jnp.sum(jnp.diagonal(h) == 0, dtype=jnp.int32)
    return MatrixInfo(
        error=error,
        rounding_error=plain_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=dead,
        fallback=jnp.bool_(False),
    )


@statistic_for.register(SVD)
def _(cfg):
    own = {"none": None, "act": Moments(), "whiten": Hessian()}[cfg.scale]
    return own if cfg.factors is None or own is not None else statistic_for(cfg.factors)
