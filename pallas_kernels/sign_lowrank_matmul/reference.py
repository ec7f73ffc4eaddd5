"""The product in float64 with numpy."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.sign_lowrank_matmul.layout import SignBlocks, SignLayout


def sign_lowrank_matrix(blocks: SignBlocks, layout: SignLayout) -> np.ndarray:
    """The dense matrix ``[rows, cols]``, block after block."""
    signs, u, v, slots, loaded = (np.asarray(a) for a in blocks)
    w = np.zeros((layout.rows, layout.cols))
    for at in slots[: int(loaded)]:
        magnitude = u[at].astype(np.float64) @ v[at].astype(np.float64)
        w += np.where(unpack(signs[at], layout.packing) == 1, magnitude, -magnitude)
    return w


def sign_lowrank_reference(x: Any, blocks: SignBlocks, layout: SignLayout) -> np.ndarray:
    """``x @ w`` in float64."""
    return np.asarray(x, np.float64) @ sign_lowrank_matrix(blocks, layout)
