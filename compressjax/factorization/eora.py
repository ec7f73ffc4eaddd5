"""EoRA: a low-rank path beside a compressed weight that makes up for what its outputs lost.

``Ŵ + B A`` with ``B A`` the rank-r matrix of least ``E|x(W - Ŵ - BA)|²``, in closed form from the eigenvectors of the
inputs' second moment (Liu et al., 2024, arXiv 2410.21271). Departures from the authors' code: eigenvalues that are
nothing but rounding are dropped, where it replaces negative ones by the least positive one and factors explode; sums
are plain sums, where its running mean weighs samples unequally; in the block-by-block pass the inputs of a layer come
from layers that are compensated already, also inside a block, where it gathers those of the uncompressed block.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compressjax.calibration.joint import HessianAndMoments
from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian, Moments
from compressjax.driver import (
    MatrixInfo,
    check_input,
    compress_group,
    leaf_rule,
    shared_rule,
    statistic_for,
    wants_original,
)
from compressjax.factorization.factors import check_storage_fields, second_moment, stored
from compressjax.leaf.sum import add
from compressjax.numerics.linalg import quadratic
from compressjax.numerics.whitened_svd import Whitening, scaled_fit, whiten, whitened_fit
from compressjax.ops import dense, logical_shape
from compressjax.select import replace, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class EoRA:
    """A method, and the low-rank path that repairs what it does.

    Attributes:
      base: the method that is repaired, for ``quantize`` and its kind; None where :func:`compensate` is given weights
        that are compressed already.
      rank: of the path, at least 1.
      scale: "whiten": EoRA; "act" and "none" are the baselines of the paper, inputs weighed by their mean magnitude
        and the plain SVD of the error.
      damp: added to the second moment's diagonal, relative to its mean.
      eig_rtol: eigenvalues up to this share of the largest are dropped; None for ``in * eps``.
      dtype: of the factors.
      factors: a method that compresses both factors, or None.
    """

    base: Any = None
    rank: int = 32
    scale: Literal["whiten", "act", "none"] = "whiten"
    damp: float = 0.0
    eig_rtol: float | None = None
    dtype: str = "float16"
    factors: Any = None

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"EoRA.rank must be an integer >= 1, got {self.rank!r}")
        if self.scale not in ("whiten", "act", "none"):
            raise ValueError(f"EoRA.scale must be 'whiten', 'act' or 'none', got {self.scale!r}")
        if self.damp < 0 or (self.eig_rtol is not None and not 0 <= self.eig_rtol < 1):
            raise ValueError(f"EoRA needs damp >= 0 and eig_rtol in [0, 1), got {self.damp} and {self.eig_rtol}")
        if self.base is not None and not leaf_rule.knows(self.base) and not shared_rule.knows(self.base):
            raise TypeError(f"EoRA.base must be a method such as GPTQ or RTN, or None, got {self.base!r}")
        check_storage_fields(self)


def eora(w: jax.Array, compressed: Any, stats: Record | None, cfg: EoRA, white: Whitening | None = None) -> Any:
    """The compressed weight with its low-rank path.

    Args:
      w: the original ``[in, out]``.
      compressed: a leaf or array of the same logical shape.
      stats: ``xtx`` of the inputs (``abs_sum`` for ``scale="act"``).
      cfg: the options; ``base`` is not read.
      white: ``whiten(stats.xtx, cfg.damp, cfg.eig_rtol)`` where several weights share it.

    Returns:
      A ``Sum`` of ``compressed`` and a ``LowRank`` leaf.

    Raises:
      ValueError: another shape, a rank above the smaller side, or statistics that are missing.
    """
    shape = logical_shape(compressed)
    if shape != w.shape:
        raise ValueError(f"compressed has the shape {shape}, the original {w.shape}")
    if cfg.rank > min(shape):
        raise ValueError(f"EoRA.rank must be at most {min(shape)} for a weight {shape}, got {cfg.rank}")
    delta = w.astype(jnp.float32) - dense(compressed).astype(jnp.float32)
    if cfg.scale == "whiten":
        white = whiten(second_moment(stats, cfg), cfg.damp, cfg.eig_rtol) if white is None else white
        fit = whitened_fit(delta, white, cfg.rank)
    else:
        if cfg.scale == "act" and (stats is None or stats.abs_sum is None):
            raise ValueError("EoRA.scale='act' needs abs_sum: calibrate with HessianAndMoments()")
        fit = scaled_fit(delta, stats.abs_sum if cfg.scale == "act" and stats is not None else None, cfg.rank)
    return add(compressed, stored(fit.left, fit.right, stats, cfg))


def compensate(params: Any, compressed: Any, cfg: EoRA, *, stats: Mapping[str, Record]) -> Any:
    """Gives weights that are compressed already their low-rank paths.

    Args:
      params: the original tree; kernels are ``[in, out]`` or stacked.
      compressed: the same tree with compressed leaves in it; other weights stay.
      cfg: with ``base`` None.
      stats: records by path, from ``calibrate``.

    Raises:
      ValueError: ``base`` is given, nothing is compressed, or statistics are missing or do not fit.
    """
    if cfg.base is not None:
        raise ValueError("compensate takes weights that are compressed already: EoRA.base must be None")
    before, after = weights(params), weights(compressed)
    changed = {path: leaf for path, leaf in after.items() if not isinstance(leaf, jax.Array)}
    if not changed:
        raise ValueError("compressed holds no compressed weight to compensate")
    done = {}
    for path, leaf in changed.items():
        record = stats.get(path)
        check_input(path, before[path], record, cfg)
        done[path] = _stacked(before[path], leaf, record, cfg)
    return replace(compressed, done)


def _stacked(w, leaf, record, cfg):
    lead = w.shape[:-2]
    if not lead:
        return _jitted(w, leaf, record, cfg)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), (w, leaf, record))
    out = jax.lax.map(lambda one: _jitted(*one, cfg), flat)
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), out)


def _run(w, leaf, record, cfg):
    return eora(w, leaf, record, cfg)


_jitted = jax.jit(_run, static_argnames="cfg")


@shared_rule.register(EoRA)
def _(ws, cfg, stats, key):
    if cfg.base is None:
        raise ValueError("EoRA.base names the method to repair; for weights compressed already, see compensate()")
    found = compress_group(ws, cfg.base, stats, key)
    white = whiten(second_moment(stats, cfg), cfg.damp, cfg.eig_rtol) if cfg.scale == "whiten" else None
    out = []
    for w, (leaf, info) in zip(ws, found, strict=True):
        repaired = eora(w, leaf, stats, cfg, white)
        out.append((repaired, _info(w, leaf, repaired, info, stats)))
    return tuple(out)


@leaf_rule.register(EoRA)
def _(w, cfg, stats, key):
    return shared_rule((w,), cfg, stats, key)[0]


def _info(w, leaf, repaired, info: MatrixInfo | None, stats) -> MatrixInfo:
    """``rounding_error`` is that of the base method without its path."""
    w = w.astype(jnp.float32)
    h = jnp.eye(w.shape[0], dtype=jnp.float32) if stats is None or stats.xtx is None else stats.xtx
    zero = jnp.int32(0)
    return MatrixInfo(
        error=quadratic(w - dense(repaired).astype(jnp.float32), h),
        rounding_error=quadratic(w - dense(leaf).astype(jnp.float32), h),
        energy=quadratic(w, h),
        damp=jnp.float32(0) if info is None else info.damp,
        dead=zero if info is None else info.dead,
        fallback=jnp.bool_(False) if info is None else info.fallback,
    )


@statistic_for.register(EoRA)
def _(cfg):
    base = None if cfg.base is None else statistic_for(cfg.base)
    if cfg.scale == "act" and base in (None, Hessian(), Moments()):
        return HessianAndMoments()
    if base is None:
        return Hessian() if cfg.scale == "whiten" or cfg.factors is not None else None
    return HessianAndMoments() if isinstance(base, Moments) else base


@wants_original.register(EoRA)
def _(cfg):
    return cfg.base is not None and wants_original.knows(cfg.base) and wants_original(cfg.base)
