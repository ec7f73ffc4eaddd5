"""LoRD: thin layers from the leading directions of a layer's outputs, in one shot.

``W ≈ (W V) Vᵀ`` with ``V`` the eigenvectors of ``Wᵀ C W``, the outputs' second moment (atomic feature mimicking; LoRD:
Kaushal et al., 2023, arXiv 2309.14021). With ``C`` the inputs' covariance instead, and the mean that is lost put into
the bias (:func:`with_mean_shift`), it is the best affine map of that rank. The paper's code was not to be had; the
method is as the paper and those that restate it have it. Outputs are never formed: the inputs' sums are enough.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.joint import HessianAndMoments
from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Hessian
from compressjax.driver import leaf_rule, statistic_for
from compressjax.factorization.factors import break_even_rank, check_rank_fields, rank_of, second_moment, stored
from compressjax.factorization.svd import fit_info
from compressjax.numerics.whitened_svd import output_basis, scaled_fit, whiten
from compressjax.ops import dense
from compressjax.quantization.rtn import dense_weight
from compressjax.select import replace, weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRD:
    """Low-rank decomposition by the principal components of the outputs.

    Attributes:
      rank: columns of the left factor; None for what ``reduction`` says.
      reduction: the share of the smaller side that is given up; the default is the most at which the paper still
        loses less than 1 % of perplexity.
      multiple: ranks from ``reduction`` are multiples of it; the paper has 128.
      center: components of the covariance instead of the second moment. The compressed layer's mean output is then
        off, which :func:`with_mean_shift` puts right through the biases.
      require_saving: leave a weight dense where its two factors would hold no fewer numbers.
      dtype: of the factors.
      factors: a method that compresses both factors (the paper has SpQR), or None.
    """

    rank: int | None = None
    reduction: float = 0.3958
    multiple: int = 1
    center: bool = False
    require_saving: bool = True
    dtype: str = "float16"
    factors: Any = None

    def __post_init__(self):
        check_rank_fields(self)


@leaf_rule.register(LoRD)
def _(w, cfg, stats, key):
    given, w = w, dense_weight(w, cfg)
    rank = rank_of(cfg, *w.shape)
    if cfg.require_saving and rank > break_even_rank(*w.shape):
        return given, None
    c = centred_moment(stats, cfg) if cfg.center else second_moment(stats, cfg)
    basis, _ = output_basis(w, whiten(c), rank)
    leaf = stored(jnp.matmul(w, basis, precision="highest"), basis.T, stats, cfg)
    plain = scaled_fit(w, None, rank)
    return leaf, fit_info(w, leaf, plain, stats)


@statistic_for.register(LoRD)
def _(cfg):
    return HessianAndMoments() if cfg.center else Hessian()


def centred_moment(stats: Record | None, cfg: Any) -> jax.Array:
    """``Σ (x - μ)(x - μ)ᵀ`` from the sums of a record.

    Raises:
      ValueError: the record lacks one of them.
    """
    xtx = second_moment(stats, cfg)
    if stats is None or stats.x_sum is None or stats.count is None:
        raise ValueError(f"{type(cfg).__name__}.center needs x_sum and count: calibrate with HessianAndMoments()")
    return xtx - stats.x_sum[:, None] * stats.x_sum[None, :] / jnp.maximum(stats.count.astype(jnp.float32), 1)


def with_mean_shift(params: Any, compressed: Any, stats: Mapping[str, Record]) -> Any:
    """Biases that give every compressed layer back the mean output it had: ``b + μ (W - Ŵ)``.

    Args:
      params: the original tree.
      compressed: the same tree with compressed kernels, by any method.
      stats: records with ``x_sum`` and ``count`` of every compressed kernel.

    Returns:
      ``compressed`` with new biases.

    Raises:
      ValueError: a compressed kernel has no bias beside it, or no record with sums; the message names it.
    """
    before, after = weights(params), weights(compressed)
    found: dict[str, jax.Array] = {}
    for path, leaf in after.items():
        if leaf is before[path] or not path.endswith("kernel"):
            continue
        bias = f"{path.removesuffix('kernel')}bias"
        if bias not in before:
            raise ValueError(f"{path} has no bias beside it to hold the mean output: use center=False")
        record = stats.get(path)
        if record is None or record.x_sum is None or record.count is None:
            raise ValueError(f"statistics of {path} lack x_sum or count: calibrate with HessianAndMoments()")
        mean = record.x_sum / jnp.maximum(record.count.astype(jnp.float32), 1)[..., None]
        lost = before[path].astype(jnp.float32) - dense(leaf).astype(jnp.float32)
        shift = jnp.einsum("...i,...io->...o", mean, lost, precision="highest")
        found[bias] = (before[bias].astype(jnp.float32) + shift).astype(before[bias].dtype)
    return replace(compressed, found)
