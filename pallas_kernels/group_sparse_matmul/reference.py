"""The product in float64 with numpy, one stored group at a time."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout, StoredGroups
from pallas_kernels.packing import Packing


def group_sparse_matrix(stored: StoredGroups, layout: GroupSparseLayout) -> np.ndarray:
    """The dense matrix ``[rows, cols]``."""
    codes, scale, zero, index = (np.asarray(a) for a in stored[:4])
    if layout.zero_kind == "int":
        packing = Packing(layout.bits, 32, layout.stored[-1])
        zero = unpack(zero.reshape(-1, zero.shape[-1]).T, packing).T.reshape(layout.stored)
    w = np.zeros((layout.rows, layout.cols))
    for at in np.ndindex(layout.stored):
        if stored.row_ptr is None:
            output = at[-1]
        else:
            output = int(np.searchsorted(np.asarray(stored.row_ptr), at[0], side="right")) - 1
        for i in range(layout.group):
            field, word = divmod(i, layout.words)
            code = int(codes[(word, *at)]) >> (field * layout.bits) & (2**layout.bits - 1)
            value = float(scale[at]) * (code - float(zero[at]))
            w[int(index[at]) * layout.group + i, output] = value
    return w


def group_sparse_reference(x: Any, stored: StoredGroups, layout: GroupSparseLayout) -> np.ndarray:
    """``x @ w`` in float64."""
    return np.asarray(x).astype(np.float64) @ group_sparse_matrix(stored, layout)
