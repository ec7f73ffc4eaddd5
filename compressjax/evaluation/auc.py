"""Area under the ROC curve, exactly."""

import numpy as np
from numpy.typing import ArrayLike


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann and Whitney, 1947).

    Computed from ranks, ties sharing their mean rank, in float64 and integers: no thresholds, no bins.

    Args:
      scores: numbers ``[N]``, higher for what is thought positive.
      labels: ``[N]``, 0 or 1.

    Raises:
      ValueError: shapes that differ, labels other than 0 and 1 or all alike, or a score that is not finite.

    >>> roc_auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and labels must be [N] both, got {values.shape} and {truth.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    positive = int(np.sum(truth == 1))
    negative = len(truth) - positive
    if not positive or not negative:
        raise ValueError(f"labels must hold both classes, got {positive} positive and {negative} negative")
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    above = np.sum(mean_rank[group][truth == 1]) - positive * (positive + 1) / 2
    return float(above / (positive * negative))
