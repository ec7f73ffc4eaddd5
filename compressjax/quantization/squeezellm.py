"""SqueezeLLM: a table of levels per output, placed where the loss feels errors, and the largest weights kept apart.

To second order a change ``dw`` of a trained network's weights costs ``1/2 sum F_ii dw_i²`` with the diagonal of the
Fisher information ``F``, the mean over sequences of the squared gradient of a sequence's loss. One-dimensional k-means
with the weights ``F`` minimises just that over tables of ``2**bits`` levels. Kim et al., 2023, arXiv 2306.07629.

Departures from the reference code: exactly the wanted number of weights is stored apart, from each matrix, where it
tunes a multiple of the interquartile range until the model has its share; several starts of the k-means; a floor under
the Fisher information; levels are rounded to their storage type before anything is rounded to them.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian, blank, measure
from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.leaf.codebook import pack_codebook
from compressjax.leaf.outliers import pack_outliers
from compressjax.leaf.sum import add
from compressjax.numerics import grids, kmeans
from compressjax.numerics.kmeans_exact import kmeans_exact
from compressjax.numerics.sweep import sweep
from compressjax.quantization.gptq_grid import stored_table
from compressjax.quantization.hessian_plan import HessianPlan, hessian_plan
from compressjax.quantization.rtn import dense_weight, output_errors
from compressjax.quantization.squeezellm_config import SqueezeLLM


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossFisher:
    """Marks a method that reads ``record.fisher``: gradients of the network's loss, which no layer's input shows.

    Attributes:
      hessian: whether it reads ``record.xtx`` too.
    """

    hessian: bool = False


def _no_loss_here(what):
    return ValueError(
        f"SqueezeLLM(fisher='loss') reads gradients of the network's loss, which {what} cannot see. Gather them in one "
        "pass, stats = calibrate(apply_fn, params, batches, Fisher(loss=...)), and call quantize(params, cfg, "
        "stats=stats); or use SqueezeLLM(fisher='act'), which weighs weights by the energy of their inputs and works "
        "block by block"
    )


@measure.register(LossFisher)
def _(cfg, x, mask=None):
    raise _no_loss_here("calibration block by block")


@blank.register(LossFisher)
def _(cfg, shape):
    raise _no_loss_here("calibrate without a loss")


def importance(shape: tuple[int, ...], stats: Record | None, cfg: SqueezeLLM) -> jax.Array:
    """What an error of each weight costs, float32 ``[in, out]``, not normalised, before the floor.

    Raises:
      ValueError: when the record lacks what ``cfg.fisher`` asks for, or (outside of ``jit``) holds negative entries.
    """
    if cfg.fisher == "act":
        if stats is None or stats.xtx is None:
            raise ValueError("SqueezeLLM(fisher='act') needs Hessian statistics: record.xtx is missing")
        return jnp.broadcast_to(jnp.diagonal(stats.xtx)[:, None], shape)
    if stats is None or stats.fisher is None:
        raise ValueError(
            "SqueezeLLM(fisher='loss') needs record.fisher: calibrate(apply_fn, params, batches, Fisher(loss=...)), or "
            "use fisher='act'"
        )
    if stats.fisher.shape != shape:
        raise ValueError(f"fisher has shape {stats.fisher.shape}, the weight {shape}: it must be the weight's own")
    if not isinstance(stats.fisher, Tracer) and bool(jnp.any(stats.fisher < 0)):
        raise ValueError("fisher has negative entries: it must hold squared gradients, not gradients")
    # Nothing can be raised under jit; gradients given for their squares then make a leaf of NaN, never a wrong one.
    return jnp.where(jnp.any(stats.fisher < 0), jnp.nan, stats.fisher)


def split(w: jax.Array, fisher: jax.Array, sensitive: int, large: int) -> jax.Array:
    """Which weights are stored apart: the most sensitive, then the largest of the others.

    Args:
      w: ``[in, out]``.
      fisher: ``[in, out]``.
      sensitive, large: how many of each; ties go to the earlier place, so exactly as many are taken.

    Returns:
      bool ``[in, out]``.
    """
    removed = jnp.zeros((w.size,), bool)
    if sensitive:
        removed = removed.at[jax.lax.top_k(fisher.reshape(-1), sensitive)[1]].set(True)
    if large:
        size = jnp.where(removed, -1, jnp.abs(w.reshape(-1)))
        removed = removed.at[jax.lax.top_k(size, large)[1]].set(True)
    return removed.reshape(w.shape)


def table_for(w: jax.Array, weight: jax.Array, removed: jax.Array, cfg: SqueezeLLM, key: jax.Array | None) -> jax.Array:
    """Levels ``[2**bits, out]``, rounded to their storage type: k-means of what is not stored apart.

    Args:
      w: ``[in, out]``.
      weight: cost of an error, ``[in, out]`` or ``[in, 1]``.
      removed: bool ``[in, out]``.
      cfg: the tables.
      key: for "kmeans++".
    """
    floor = cfg.floor * jnp.mean(weight, axis=0, keepdims=True)
    weight = jnp.maximum(jnp.broadcast_to(weight, w.shape), floor)
    weight = jnp.where(jnp.all(weight == 0, axis=0, keepdims=True), 1, weight)
    weight = jnp.where(removed, 0, weight)
    count = 2**cfg.bits
    if cfg.exact:
        levels = kmeans_exact(w, weight, count).levels
    else:
        fit = kmeans.kmeans_restarts(w, weight, count, iterations=cfg.iterations, starts=cfg.starts, key=key)
        levels = fit.levels
    return stored_table(levels, cfg.lut_dtype)


def _round(w, removed, table, cfg):
    """Codes, rounded weight and the values stored apart, all ``[n, out]``, for weights as they now are.

    The table's level nearest 0 stands under a weight that is stored apart, and its value is what is missing to it.
    """
    centre = kmeans.assign(jnp.zeros((1, w.shape[1]), jnp.float32), table)
    codes = jnp.where(removed, centre, kmeans.assign(w, table))
    coarse = kmeans.pick(table, codes)
    most = jnp.float32(jnp.finfo(cfg.value_dtype).max)
    values = jnp.clip(w - coarse, -most, most).astype(cfg.value_dtype).astype(jnp.float32)
    values = jnp.where(removed, values, 0)
    return codes, coarse + values, values


def _swept(w, removed, table, plan: HessianPlan, cfg):
    """The same by GPTQ's sweep, in the plan's order and back."""
    apart = removed[plan.perm]
    width, cols = w.shape

    def round_row(row, i, values):
        at = jnp.minimum(i, width - 1)
        codes, rounded, value = _round(row[None], apart[at][None], table, cfg)
        return rounded[0], codes[0].astype(jnp.float32), values.at[i].set(value[0], mode="drop")

    out = sweep(w[plan.perm], plan.factor.u, round_row, jnp.zeros((width, cols), jnp.float32), block=32)
    back = jnp.argsort(plan.perm)
    return out.codes[back].astype(jnp.int32), out.weight[back], out.state[back]


def squeezellm(
    w: jax.Array, stats: Record | None, cfg: SqueezeLLM, key: jax.Array | None = None
) -> tuple[Any, MatrixInfo]:
    """Quantises one weight ``[in, out]`` to a table per output and a sparse remainder.

    Args:
      w: floating point ``[in, out]``.
      stats: ``fisher`` (or ``xtx``, as ``cfg`` says); ``xtx`` too for ``refine="sweep"``.
      cfg: the options.
      key: for starts by "kmeans++"; None for a fixed one.

    Returns:
      A ``Codebook``, or the ``Sum`` of one and ``Outliers``, and what is known of its error.

    Raises:
      ValueError: for statistics that are missing, of another shape, or negative.
    """
    w = dense_weight(w, cfg)
    fisher = importance(w.shape, stats, cfg)
    count = 2**cfg.bits
    if count > w.shape[0]:
        warnings.warn(
            f"SqueezeLLM.bits={cfg.bits} gives {count} levels to {w.shape[0]} inputs: every weight has one of its own",
            stacklevel=2,
        )
    sensitive, large = cfg.slots(w.size)
    removed = split(w, fisher, sensitive, large)
    if cfg.refine == "sweep":
        if stats is None or stats.xtx is None:
            raise ValueError("SqueezeLLM(refine='sweep') needs Hessian statistics as well: record.xtx is missing")
        plan = hessian_plan(stats, method="SqueezeLLM", group=-1, order="act", damp=cfg.damp, damp_step=cfg.damp_step)
        table = table_for(w, plan.importance[:, None], removed, cfg, key)
        table = jnp.where(jnp.any(jnp.isnan(fisher)), jnp.nan, table)
        codes, rounded, values = _swept(w, removed, table, plan, cfg)
    else:
        table = table_for(w, fisher, removed, cfg, key)
        table = jnp.where(jnp.any(jnp.isnan(fisher)), jnp.nan, table)
        codes, rounded, values = _round(w, removed, table, cfg)

    grid = grids.minmax_grid(w, cfg.bits)
    wide = grids.Grid(grid.scale[None], grid.zero[None])
    plain = grids.decode(grids.encode(w, wide, cfg.bits), wide)
    h = None if stats is None else stats.xtx
    error, rounding_error, energy = output_errors(w, rounded, plain, h)
    info = MatrixInfo(
        error=error,
        rounding_error=rounding_error,
        energy=energy,
        damp=plan.factor.damp if cfg.refine == "sweep" else jnp.float32(0),
        dead=jnp.int32(0) if h is None else jnp.sum(jnp.diagonal(h) == 0, dtype=jnp.int32),
        fallback=plan.fallback if cfg.refine == "sweep" else jnp.bool_(False),
    )
    leaf = pack_codebook(codes, table[None].astype(cfg.lut_dtype), group=-1)
    if not sensitive + large:
        return leaf, info
    return add(leaf, pack_outliers(removed, values.astype(cfg.value_dtype), sensitive + large)), info


@leaf_rule.register(SqueezeLLM)
def _(w, cfg, stats, key):
    return squeezellm(w, stats, cfg, key)


@statistic_for.register(SqueezeLLM)
def _(cfg):
    return Hessian() if cfg.fisher == "act" else LossFisher(hessian=cfg.refine is not None)
