"""The sparse part in float64 with numpy."""

from typing import Any

import numpy as np

from pallas_kernels.outlier_matmul.outliers import Outliers


def outlier_matrix(outliers: Outliers, rows: int, cols: int) -> np.ndarray:
    """The dense matrix ``[rows, cols]`` of the outliers, one value after the other."""
    starts, inputs, values = (np.asarray(a) for a in outliers)
    w = np.zeros((rows, cols))
    for col in range(cols):
        for slot in range(starts[col], starts[col + 1]):
            w[inputs[slot], col] += float(values[slot])
    return w


def outlier_reference(x: Any, base: np.ndarray, outliers: Outliers) -> np.ndarray:
    """``x @ (base + outliers)`` in float64 for a dense ``base``."""
    return np.asarray(x, np.float64) @ (base + outlier_matrix(outliers, *base.shape))
