"""The product in float64 with numpy, one group after the other."""

from typing import Any

import numpy as np

from pallas_kernels.additive_matmul.layout import AdditiveLayout


def additive_matrix(codes: Any, codebooks: Any, scale: Any, layout: AdditiveLayout) -> np.ndarray:
    """The dense matrix ``[rows, cols]``."""
    codes = np.asarray(codes)
    books, scale = (np.asarray(a).astype(np.float64) for a in (codebooks, scale))
    w = np.zeros((layout.rows, layout.cols))
    for at, output in np.ndindex(layout.groups, layout.cols):
        vectors = [books[m, codes[at, output, m]] for m in range(layout.books)]
        w[at * layout.group : (at + 1) * layout.group, output] = scale[output] * np.sum(vectors, axis=0)
    return w


def additive_reference(x: Any, codes: Any, codebooks: Any, scale: Any, layout: AdditiveLayout) -> np.ndarray:
    """``x @ w`` in float64."""
    return np.asarray(x).astype(np.float64) @ additive_matrix(codes, codebooks, scale, layout)
