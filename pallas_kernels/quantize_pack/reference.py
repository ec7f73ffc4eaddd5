"""The same in float64 with numpy, one block at a time as the table in ``layout`` is written down."""

import math
from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.packing import Packing
from pallas_kernels.quantize_pack.layout import Packed, PackLayout


def codes_reference(packed: Packed, shape: tuple[int, ...], layout: PackLayout) -> np.ndarray:
    """Codes of the array, padding of a flat one included."""
    words = np.asarray(packed.words)
    if layout.along == "flat":
        rows = words.size * 32 // layout.bits
        return unpack(words.reshape(-1, 1), Packing(layout.bits, layout.tile, rows))[:, 0]
    rows = shape[-2]
    found = [unpack(one, Packing(layout.bits, layout.tile, rows)) for one in words.reshape(-1, *words.shape[-2:])]
    return np.stack(found).reshape(shape)


def in_blocks(x: Any, layout: PackLayout) -> np.ndarray:
    """``[*shape of scale, block]`` in float64."""
    x = np.asarray(x).astype(np.float64)
    if layout.along == "flat":
        blocks = math.ceil(x.size / layout.block)
        fill = 0.0 if layout.kind == "norm" else x.reshape(-1)[-1]
        padded = np.full(blocks * layout.block, fill)
        padded[: x.size] = x.reshape(-1)
        return padded.reshape(blocks, layout.block)
    *lead, rows, cols = x.shape
    if layout.along == "cols":
        return x.reshape(*lead, rows, cols // layout.block, layout.block)
    return np.swapaxes(x.reshape(*lead, rows // layout.block, layout.block, cols), -1, -2)


def statistics_reference(x: Any, layout: PackLayout) -> tuple[np.ndarray, np.ndarray | None]:
    """``scale`` and ``low`` in float64, before they are rounded to their dtype."""
    blocks = in_blocks(x, layout)
    if layout.kind == "norm":
        return np.sqrt(np.sum(blocks**2, axis=-1)), None
    if layout.kind == "absmax":
        return np.max(np.abs(blocks), axis=-1) / layout.steps, None
    low = np.min(blocks, axis=-1)
    return (np.max(blocks, axis=-1) - low) / layout.steps, low


def positions_reference(x: Any, packed: Packed, layout: PackLayout) -> np.ndarray:
    """``(x - low) / unit + zero`` of every value in blocks, with the kept statistics: what codes are rounded from."""
    unit = np.asarray(packed.scale).astype(np.float64)[..., None]
    unit = unit / layout.steps if layout.kind == "norm" else unit
    low = 0.0 if packed.low is None else np.asarray(packed.low).astype(np.float64)[..., None]
    return (in_blocks(x, layout) - low) / np.where(unit > 0, unit, 1) * (unit > 0) + layout.zero
