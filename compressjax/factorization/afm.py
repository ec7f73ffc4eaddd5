"""Atomic feature mimicking: layers and tables cut to the principal components of what they put out.

A layer's outputs are those of its inputs' statistics; a table's outputs are its rows, each as often as it is looked up,
so counts are all that has to be known of the data: ``E ≈ (E - 1μᵀ) U Uᵀ + 1μᵀ`` with ``μ`` and ``U`` the mean and the
leading eigenvectors of the covariance of looked-up rows (Yu et al., 2024, arXiv 2405.18146, with code at
yuhao318/Atomic_Feature_Mimicking, whose example accumulates its statistics wrongly; the equations are what counts). A
table is a linear layer that reads one-hot rows, so its record is that of one: ``x_sum`` is how often each was read.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from compressjax.calibration.joint import HessianAndMoments
from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.factorization.factors import check_rank_fields, rank_of, stored
from compressjax.factorization.lord import LoRD, centred_moment
from compressjax.leaf.shifted import shifted
from compressjax.numerics.large_svd import is_large, leading_right, normal_matrix, product_error
from compressjax.numerics.whitened_svd import output_basis, whiten
from compressjax.ops import dense
from compressjax.quantization.rtn import dense_weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class AFM:
    """Components of outputs, for kernels from ``HessianAndMoments`` and for embedding tables from counts.

    Kernels become :class:`LowRank` leaves, and ``with_mean_shift`` puts the mean that is lost into their biases. Tables
    become a :class:`Shifted` low-rank leaf that holds its mean itself.

    Attributes:
      rank: number of components; None for what ``reduction`` says.
      reduction: the share of the smaller side that is given up.
      multiple: ranks from ``reduction`` are multiples of it.
      center: components of the covariance, the mean kept exactly; without, of the second moment.
      weighting: "frequency": rows of a table count as often as they are read, so that rare ones are given up for
        frequent ones; "uniform": all alike.
      dtype: of the factors and the mean.
      factors: a method that compresses both factors, or None; for tables one that needs no data.
    """

    rank: int | None = None
    reduction: float = 0.5
    multiple: int = 1
    center: bool = True
    weighting: Literal["frequency", "uniform"] = "frequency"
    dtype: str = "float16"
    factors: Any = None

    def __post_init__(self):
        check_rank_fields(self)
        if self.weighting not in ("frequency", "uniform"):
            raise ValueError(f"AFM.weighting must be 'frequency' or 'uniform', got {self.weighting!r}")


def table_record(ids: ArrayLike, rows: int) -> Record:
    """The record of an embedding table from the ids that were looked up in it.

    Records of parts of the data add up with ``calibration.records.merge``.

    Args:
      ids: integers of any shape, in ``0..rows - 1``.
      rows: of the table.

    Raises:
      TypeError: ids that are not integers.
      ValueError: no ids, or one outside the table.
    """
    flat = np.asarray(ids).ravel()
    if not np.issubdtype(flat.dtype, np.integer):
        raise TypeError(f"ids must be integers, got {flat.dtype}")
    if not flat.size or flat.min() < 0 or flat.max() >= rows:
        span = f"{flat.min()}..{flat.max()}" if flat.size else "none"
        raise ValueError(f"ids must be in 0..{rows - 1} and at least one, got {span}")
    return record_of_counts(np.bincount(flat, minlength=rows))


def record_of_counts(counts: ArrayLike) -> Record:
    """The record of an embedding table from how often each row was read, ``[rows]``.

    Raises:
      ValueError: counts that are negative, not finite, or all zero.
    """
    each = np.asarray(counts, np.float64)
    if each.ndim != 1 or not np.isfinite(each).all() or (each < 0).any() or not each.sum():
        raise ValueError("counts must be [rows], finite, >= 0 and not all 0")
    return Record(count=jnp.float32(each.sum()), x_sum=jnp.asarray(each, jnp.float32))


def rank_for_variance(w: jax.Array, record: Record, keep: float, cfg: AFM | None = None) -> int:
    """The smallest rank whose components hold a share of the outputs' variance.

    Args:
      w: kernel or table ``[in, out]``.
      record: of its input, or of its counts.
      keep: share in (0, 1].
      cfg: ``center`` and ``weighting``; the defaults when None.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    cfg = AFM() if cfg is None else cfg
    if record.xtx is not None:
        c = centred_moment(record, cfg) if cfg.center else record.xtx
        values = np.asarray(output_basis(w, whiten(c), min(w.shape))[1], np.float64) ** 2
    else:
        share, mean = _weights(w, record, cfg)
        values = np.asarray(jnp.linalg.eigvalsh(normal_matrix(w, share, mean)), np.float64)[::-1].clip(0)
    held = np.cumsum(values) / max(values.sum(), np.finfo(np.float64).tiny)
    # Rounding may leave the last share a little under one.
    return min(int(np.searchsorted(held, keep * (1 - 1e-7))) + 1, *w.shape)


@leaf_rule.register(AFM)
def _(w, cfg, stats, key):
    if stats is not None and stats.xtx is None and stats.x_sum is not None:
        return _table(dense_weight(w, cfg), cfg, stats)
    rank = rank_of(cfg, *dense_weight(w, cfg).shape)
    layer = LoRD(rank=rank, center=cfg.center, require_saving=False, dtype=cfg.dtype, factors=cfg.factors)
    return leaf_rule(w, layer, stats, key)


@statistic_for.register(AFM)
def _(cfg):
    return HessianAndMoments()


def _table(w, cfg, record):
    rows = w.shape[0]
    if record.x_sum.shape != (rows,):
        raise ValueError(f"a table of {rows} rows needs as many counts, got {record.x_sum.shape}")
    rank = rank_of(cfg, *w.shape)
    share, mean = _weights(w, record, cfg)
    basis = _components(w, rank, share, mean)
    left = jnp.matmul(w, basis, precision="highest") - jnp.matmul(mean[None], basis, precision="highest")
    leaf = shifted(stored(left, basis.T, None, cfg), mean.astype(cfg.dtype))
    kept = [dense(part).astype(jnp.float32) for part in (leaf.weight.left, leaf.weight.right)]
    plain = _components(w, rank, None, None)
    counts, nothing = record.x_sum, jnp.zeros((1, w.shape[1]))
    return leaf, MatrixInfo(
        error=product_error(w, *kept, weight=counts, shift=leaf.shift.astype(jnp.float32)),
        rounding_error=product_error(w, jnp.matmul(w, plain, precision="highest"), plain.T, weight=counts),
        energy=product_error(w, jnp.zeros((rows, 1)), nothing, weight=counts),
        damp=jnp.float32(0),
        dead=jnp.sum(counts == 0, dtype=jnp.int32),
        fallback=jnp.bool_(False),
    )


def _weights(w, record, cfg):
    """Weight of each row, summing up to 1, and the mean row."""
    rows, cols = w.shape
    share = jnp.full((rows,), 1 / rows, jnp.float32)
    if cfg.weighting == "frequency":
        share = record.x_sum / jnp.sum(record.x_sum)
    return share, jnp.matmul(share[None], w, precision="highest")[0] if cfg.center else jnp.zeros((cols,), jnp.float32)


def _components(w, rank, share, mean):
    """Leading eigenvectors of the rows' covariance ``[cols, rank]``."""
    if is_large(w.shape, rank):
        return leading_right(w, rank, weight=share, shift=mean).basis
    return jnp.linalg.eigh(normal_matrix(w, share, mean))[1][:, ::-1][:, :rank]
