"""The product and its gradients in float64 with numpy: what every implementation is tested against."""

from typing import Any, NamedTuple

import numpy as np

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.packing import Packing


def unpack(words: Any, packing: Packing) -> np.ndarray:
    """Codes ``[rows, cols]`` of packed words ``[words, cols]``, one word at a time as the layout is written down."""
    words = np.asarray(words)
    codes = np.zeros((packing.tiles * packing.tile, words.shape[1]), np.int64)
    for width, offset, first in packing.planes:
        tall = packing.tile * width // 32
        for word in range(packing.tiles * packing.words):
            tile, within = divmod(word, packing.words)
            if not first <= within < first + tall:
                continue
            for field in range(32 // width):
                value = (words[word].astype(np.int64) >> (field * width)) & (2**width - 1)
                codes[tile * packing.tile + within - first + field * tall] |= value << offset
    return codes[: packing.rows]


class AffineReference(NamedTuple):
    """Result ``[m, cols]`` and gradients for a cotangent: of x, scale and a real zero (None for other kinds)."""

    y: np.ndarray
    x_bar: np.ndarray
    scale_bar: np.ndarray
    zero_bar: np.ndarray | None


def affine_reference(x: Any, codes: Any, scale: Any, zero: Any, y_bar: Any, layout: AffineLayout) -> AffineReference:
    """``y = x w`` and its vector-Jacobian products in float64.

    Args:
      x: ``[m, rows]``.
      codes, scale, zero: as :func:`affine_matmul` takes them.
      y_bar: cotangent ``[m, cols]``.
      layout: of the matrix.
    """
    x, scale, y_bar = (np.asarray(a, np.float64) for a in (x, scale, y_bar))
    code = unpack(codes, layout.packing).astype(np.float64)
    if layout.zero_kind == "none":
        zeros = np.full(scale.shape, 2.0 ** (layout.bits - 1))
    elif layout.zero_kind == "int":
        zeros = unpack(np.asarray(zero).T, layout.zero_packing).T.astype(np.float64)
    else:
        zeros = np.asarray(zero, np.float64)
    group = np.arange(layout.rows) // layout.group
    centred = code - zeros[group]
    w_bar = x.T @ y_bar
    starts = np.arange(layout.groups) * layout.group
    scale_bar = np.add.reduceat(w_bar * centred, starts, axis=0)
    zero_bar = -scale * np.add.reduceat(w_bar, starts, axis=0) if layout.zero_kind == "real" else None
    w = scale[group] * centred
    return AffineReference(x @ w, y_bar @ w.T, scale_bar, zero_bar)
