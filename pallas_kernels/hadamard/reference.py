"""The same in float64 with numpy."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.hadamard.layout import FLOOR, HadamardLayout
from pallas_kernels.packing import Packing


def block_hadamard_reference(x: Any, block: int) -> np.ndarray:
    """Blocks of the last axis times ``(-1)^popcount(i & j) / sqrt(block)``."""
    x = np.asarray(x).astype(np.float64)
    matrix = np.array([[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)]) / np.sqrt(block)
    return (x.reshape(-1, block) @ matrix).reshape(x.shape)


def unit_reference(x: Any, layout: HadamardLayout) -> np.ndarray:
    """Distance of two levels of each row ``[m, channels]``, from the root mean square of the rotated row."""
    z = block_hadamard_reference(x, layout.block)
    return 2 * (layout.clip * np.sqrt(np.mean(z**2, axis=1)) + FLOOR) / (2**layout.bits - 1)


def levels_reference(words: Any, layout: HadamardLayout) -> np.ndarray:
    """Levels ``[m, channels]`` of packed rows."""
    words = np.asarray(words)
    channels = words.shape[1] * 32 // layout.bits
    return unpack(words.T, Packing(layout.bits, layout.tile, channels)).T - layout.half
