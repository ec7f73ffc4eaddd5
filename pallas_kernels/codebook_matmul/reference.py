"""The product in float64 with numpy."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.codebook_matmul.layout import CodebookLayout


def codebook_matrix(codes: Any, levels: Any, layout: CodebookLayout) -> np.ndarray:
    """The dense matrix ``[rows, cols]``, one entry of a table after the other."""
    code, tables = unpack(codes, layout.packing), np.asarray(levels, np.float64)
    group = np.arange(layout.rows) // layout.group
    return tables[group[:, None], code, np.arange(layout.cols)[None, :]]


def codebook_reference(x: Any, codes: Any, levels: Any, layout: CodebookLayout) -> np.ndarray:
    """``x @ w`` in float64."""
    return np.asarray(x, np.float64) @ codebook_matrix(codes, levels, layout)
