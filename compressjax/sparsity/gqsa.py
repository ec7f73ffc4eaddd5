"""GQSA: the least important groups of inputs of each output are dropped, the rest is stored in few bits.

The score of a group is the mean over its weights of ``w² H_ii`` (or of ``w² / [H⁻¹]_ii``); an exact share of the groups
goes. What goes is compensated, together with the rounding of what stays, by one GPTQ sweep in which pruned weights
round to 0. Two stages then recover accuracy: block by block (``BQPO``) and end to end (``e2e_oqp``), in
``gqsa_recovery``. Zeng et al., 2024, "GQSA: group quantization and sparsity for accelerating large language model
inference", arXiv 2412.17560. The authors' code is not public; score, initialisation and storage layout were measured
out here.
"""

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import MatrixInfo, leaf_rule, shared_rule, statistic_for
from compressjax.leaf.group_sparse import GroupSparse, check_group, pack_group_sparse
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan, plan_info
from compressjax.quantization.rtn import dense_weight
from compressjax.sparsity.gqsa_config import GQSA
from compressjax.sparsity.gqsa_mask import (
    group_mask,
    group_scores,
    keep_in_matrix,
    keep_in_outputs,
    kept_count,
    weight_scores,
)
from compressjax.sparsity.masked_init import masked_init, rounded_as_it_is


def kept_groups_of(w: jax.Array, plan: HessianPlan, cfg: GQSA, score: str) -> jax.Array:
    """The groups of one matrix that stay: int32 ``[kept, out]`` in scope "row", ``[kept]`` in scope "matrix"."""
    scores = group_scores(weight_scores(w, plan, score), cfg.group)
    groups, cols = scores.shape
    if cfg.scope == "row":
        return keep_in_outputs(scores, kept_count(groups, cfg.sparsity))
    return keep_in_matrix(scores, kept_count(groups * cols, cfg.sparsity), cfg.least)


def _wide(kept, groups, cols, group):
    return jnp.repeat(group_mask(kept, groups, cols), group, axis=0)


def gqsa_shared(ws: tuple[jax.Array, ...], stats: Record, cfg: GQSA) -> tuple[tuple[GroupSparse, MatrixInfo], ...]:
    """Prunes and quantises weights that read the same input, with one factor and one sweep for all.

    Args:
      ws: weights ``[in, out_k]``, floating point.
      stats: ``xtx`` of their input.
      cfg: the options; its recovery stage is not run here.

    Returns:
      Per weight a ``GroupSparse`` leaf and its :class:`MatrixInfo`, in which ``rounding_error`` is that of dropping the
      groups with the smallest weights and rounding the others to nearest.

    Raises:
      ValueError: when groups do not divide the inputs, the sparsity leaves nothing, or statistics do not fit.
      TypeError: for weights that are compressed already.
    """
    dense = [dense_weight(w, cfg) for w in ws]
    for w in dense:
        check_group(w.shape[0], cfg.bits, cfg.group)
    plan = hessian_plan(stats, method="GQSA", group=cfg.group, order=cfg.order, damp=cfg.damp, damp_step=cfg.damp_step)
    width = plan.h.shape[0]
    if any(w.shape[0] != width for w in dense):
        raise ValueError(f"Hessian is for {width} inputs, weights have {[w.shape[0] for w in ws]}")
    groups = width // cfg.group
    original = jnp.concatenate(dense, axis=1)
    w = jnp.where(plan.dead[:, None], 0, original)
    edges = [0]
    for one in dense:
        edges.append(edges[-1] + one.shape[1])
    cuts = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]

    def mask_of(chosen):
        wide = [_wide(k, groups, cut.stop - cut.start, cfg.group) for k, cut in zip(chosen, cuts, strict=True)]
        return jnp.concatenate(wide, axis=1)

    kept = [kept_groups_of(w[:, cut], plan, cfg, cfg.score) for cut in cuts]
    codes, rounded, grid = masked_init(w, mask_of(kept), plan, cfg)
    small = [kept_groups_of(original[:, cut], plan, cfg, "magnitude") for cut in cuts]
    plain = rounded_as_it_is(original, mask_of(small), cfg.group, cfg).weight
    out = []
    for chosen, cut in zip(kept, cuts, strict=True):
        leaf = pack_group_sparse(
            codes[:, cut],
            grid.scale[:, cut].astype(cfg.scale_dtype),
            grid.zero[:, cut],
            chosen,
            bits=cfg.bits,
            group=cfg.group,
            layout="ell" if cfg.scope == "row" else "bsr",
        )
        out.append((leaf, plan_info(original[:, cut], rounded[:, cut], plain[:, cut], plan)))
    return tuple(out)


def gqsa(w: jax.Array, stats: Record, cfg: GQSA) -> tuple[GroupSparse, MatrixInfo]:
    """Prunes and quantises one weight ``[in, out]``; see :func:`gqsa_shared`."""
    return gqsa_shared((w,), stats, cfg)[0]


@leaf_rule.register(GQSA)
def _(w, cfg, stats, key):
    return gqsa(w, stats, cfg)


@shared_rule.register(GQSA)
def _(ws, cfg, stats, key):
    return gqsa_shared(ws, stats, cfg)


@statistic_for.register(GQSA)
def _(cfg):
    return Hessian()
