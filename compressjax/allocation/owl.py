"""Outlier-weighed layerwise sparsity: blocks with more outstanding weights keep more (OWL, arXiv 2310.05175)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from compressjax.calibration.records import Record
from compressjax.select import is_matrix, weights


def owl_sparsity(
    params: Any, stats: Mapping[str, Record], sparsity: float, *, width: float = 0.08, outstanding: float = 5.0
) -> np.ndarray:
    """Sparsity of every block, with the given mean.

    A weight stands out where ``|w_io| ‖x_i‖`` exceeds ``outstanding`` times its matrix's mean; blocks are spread over
    ``2 width`` by their shares of such weights (eq. 1 and section 3.2).

    Args:
      params: tree whose ``blocks`` hold stacked dense kernels ``[L, in, out]``.
      stats: records with ``xtx`` by path.
      sparsity: mean share of weights to drop.
      width: how far a block may be from the mean, called lambda in the paper.
      outstanding: called M in the paper.

    Returns:
      float64 ``[L]``.

    Raises:
      ValueError: a kernel without a record, or a spread that leaves [0, 1).
    """
    counts, sizes = 0.0, 0
    for path, w in weights(params).items():
        if not (path.startswith("blocks/") and is_matrix(path, w)):
            continue
        record = stats.get(path)
        if record is None or record.xtx is None:
            raise ValueError(f"owl_sparsity needs Hessian statistics of {path}")
        norms = jnp.sqrt(jnp.diagonal(record.xtx, axis1=-2, axis2=-1))
        size = jnp.abs(w.astype(jnp.float32)) * norms[..., None]
        out = size > outstanding * jnp.mean(size, axis=(-2, -1), keepdims=True)
        counts = counts + np.asarray(jnp.sum(out, axis=(-2, -1)), np.float64)
        sizes += w.shape[-2] * w.shape[-1]
    if not sizes:
        raise ValueError("params hold no kernels under blocks/")
    ratio = np.atleast_1d(counts / sizes)
    spread = ratio.max() - ratio.min()
    kept_more = 2 * width * (ratio - ratio.min()) / (spread if spread > 0 else 1.0)
    found = sparsity - kept_more + kept_more.mean()
    if found.min() < 0 or found.max() >= 1:
        raise ValueError(
            f"sparsity {sparsity} with width {width} leaves [0, 1): {found.min():.3f} to {found.max():.3f}"
        )
    return found
