"""Unstructured pruning that compensates: the column sweep of GPTQ with zero in place of rounding.

SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774) drops the weights with the least ``w² / U_ii²``, where
``H⁻¹ = Uᵀ U``, and pushes what each dropped weight did onto the inputs that follow. With ``block=-1`` the mask of the
whole matrix is chosen at once, as EvoPress does for its levels (arXiv 2410.14649, code at IST-DASLab/EvoPress).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import MatrixInfo, leaf_rule, shared_rule, statistic_for
from compressjax.leaf.masked import Masked, pack_masked
from compressjax.numerics.sweep import sweep
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan, plan_info
from compressjax.quantization.rtn import dense_weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """How many weights of a matrix go, and which.

    Attributes:
      sparsity: share of the weights that are dropped, in [0, 1).
      extra: weights dropped beyond that share, or kept where negative: a step of ``extra`` is as many weights in a
        matrix of any size, so that a search can trade steps between matrices.
      block: inputs whose mask is chosen at once, each block's from weights that are up to date; -1 for all.
      score: "obs" as above, "wanda" ``|w| ‖x‖``, "magnitude".
      compensate: False leaves the kept weights as they are (Wanda and magnitude pruning as published).
      damp, damp_step: relative damping of the Hessian, and what is added when the factor fails.
      dtype: of the stored values.
    """

    sparsity: float = 0.5
    extra: int = 0
    block: int = -1
    score: Literal["obs", "wanda", "magnitude"] = "obs"
    compensate: bool = True
    damp: float = 0.01
    damp_step: float = 0.01
    dtype: str = "float16"

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"SparseGPT.sparsity must be in [0, 1), got {self.sparsity}")
        if self.block != -1 and self.block < 1:
            raise ValueError(f"SparseGPT.block must be >= 1 or -1 (all inputs), got {self.block}")
        if self.score not in ("obs", "wanda", "magnitude"):
            raise ValueError(f"SparseGPT.score must be 'obs', 'wanda' or 'magnitude', got {self.score!r}")
        if self.extra and self.block != -1:
            raise ValueError(f"SparseGPT.extra={self.extra} wants the mask of the whole matrix at once: block=-1")
        if self.damp < 0 or self.damp_step <= 0:
            raise ValueError(f"SparseGPT.damp must be >= 0 and damp_step > 0, got {self.damp} and {self.damp_step}")
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"SparseGPT.dtype must be a floating type, got {self.dtype!r}")


def dropped_by_block(shape: tuple[int, int], cfg: SparseGPT) -> tuple[int, ...]:
    """Weights that go from each block of inputs.

    Raises:
      ValueError: ``extra`` asks for more or fewer than there are.
    """
    rows, cols = shape
    block = rows if cfg.block == -1 else min(cfg.block, rows)
    sizes = [min(block, rows - at) * cols for at in range(0, rows, block)]
    found = tuple(round(cfg.sparsity * size) + cfg.extra for size in sizes)
    if any(not 0 <= count <= size for count, size in zip(found, sizes, strict=True)):
        raise ValueError(f"SparseGPT.extra={cfg.extra} at sparsity {cfg.sparsity} drops {found} of {sizes} weights")
    return found


def sparsegpt(w: jax.Array, stats: Record, cfg: SparseGPT = SparseGPT()) -> tuple[Masked, MatrixInfo]:
    """Prunes one weight ``[in, out]``.

    Args:
      w: floating point.
      stats: ``xtx`` of its input.
      cfg: the options.

    Returns:
      A ``Masked`` leaf, and its :class:`MatrixInfo`, in which ``rounding_error`` is that of keeping the largest weights
      as they are.

    Raises:
      ValueError: statistics that do not fit the weight, or an ``extra`` that cannot be.
      TypeError: a weight that is compressed already.
    """
    plan = hessian_plan(stats, method="SparseGPT", group=-1, order="none", damp=cfg.damp, damp_step=cfg.damp_step)
    return _pruned(dense_weight(w, cfg), plan, cfg)


def _pruned(original: jax.Array, plan: HessianPlan, cfg: SparseGPT):
    if original.shape[0] != plan.h.shape[0]:
        raise ValueError(f"Hessian is for {plan.h.shape[0]} inputs, the weight has {original.shape[0]}")
    rows, cols = original.shape
    counts = dropped_by_block((rows, cols), cfg)
    block = rows if cfg.block == -1 else min(cfg.block, rows)
    padded = len(counts) * block
    w = jnp.where(plan.dead[:, None], 0, original)
    weight_of = _importance(plan, cfg)
    # Rows that only fill the last block up are never dropped: they do not exist.
    weight_of = jnp.pad(weight_of, (0, padded - rows), constant_values=jnp.inf)
    count_of = jnp.asarray(np.asarray(counts), jnp.int32)
    real = (jnp.arange(padded) < rows).reshape(len(counts), block)

    def choose(w_block, b, _=None):
        weigh = jax.lax.dynamic_slice_in_dim(weight_of, b * block, block)
        score = jnp.where(real[b][:, None], w_block**2 * weigh[:, None], jnp.inf)
        rank = jnp.argsort(jnp.argsort(score.reshape(-1))).reshape(score.shape)
        return rank >= count_of[b]

    def drop(row, i, keep):
        own = keep[i % block]
        return jnp.where(own, row.astype(cfg.dtype).astype(jnp.float32), 0.0), own, keep

    start = jnp.zeros((block, cols), bool)
    if cfg.compensate:
        swept = sweep(w, plan.factor.u, drop, start, block=block, start_block=choose)
        pruned, keep = swept.weight, swept.codes
    else:
        blocks = jnp.pad(w, ((0, padded - rows), (0, 0))).reshape(len(counts), block, cols)
        keep = jax.lax.map(lambda args: choose(args[0], args[1]), (blocks, jnp.arange(len(counts))))
        keep = keep.reshape(padded, cols)[:rows]
        pruned = jnp.where(keep, w.astype(cfg.dtype).astype(jnp.float32), 0.0)
    largest = jnp.argsort(jnp.argsort(jnp.abs(original).reshape(-1))).reshape(original.shape) >= sum(counts)
    plain = jnp.where(largest, original, 0.0)
    made = pack_masked(pruned, keep, original.size - sum(counts), cfg.dtype)
    return made, plan_info(original, pruned, plain, plan)


def _importance(plan: HessianPlan, cfg: SparseGPT) -> jax.Array:
    """What a squared weight of each input counts, ``[in]``; dropped weights of dead inputs cost nothing."""
    if cfg.score == "obs":
        weigh = plan.importance
    elif cfg.score == "wanda":
        weigh = jnp.diagonal(plan.raw)
    else:
        weigh = jnp.ones(plan.dead.shape, jnp.float32)
    return jnp.where(plan.dead, 0.0, weigh)


@leaf_rule.register(SparseGPT)
def _(w, cfg, stats, key):
    return sparsegpt(w, stats, cfg)


@shared_rule.register(SparseGPT)
def _(ws, cfg, stats, key):
    plan = hessian_plan(stats, method="SparseGPT", group=-1, order="none", damp=cfg.damp, damp_step=cfg.damp_step)
    return tuple(_pruned(dense_weight(w, cfg), plan, cfg) for w in ws)


@statistic_for.register(SparseGPT)
def _(cfg):
    return Hessian()
