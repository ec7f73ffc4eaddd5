"""The 256 values that an 8-bit optimizer state can take, relative to the largest of its block.

The dynamic map spends its bits unevenly: seven decades below 1, each ten times coarser in absolute terms and half as
finely divided as the one above, so that values over seven orders of magnitude keep a relative error of a few per cent
and large ones far less.

Paper: Dettmers et al., 2022, arXiv 2110.02861, section 2.2 (dynamic tree quantization).
"""

import functools
from typing import Literal

import numpy as np

MapName = Literal["signed", "unsigned", "linear_signed", "linear_unsigned"]
MAP_NAMES: tuple[str, ...] = ("signed", "unsigned", "linear_signed", "linear_unsigned")


def create_dynamic_map(signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8) -> np.ndarray:
    """The dynamic map: ``± 10^(i-E+1) * mid_j`` for decades ``i < E``, with 0 and 1.

    ``mid_j`` are the midpoints of ``2^i`` (signed) or ``2^(i+1)`` (unsigned) equal cells of ``[0.1, 1]``, so the
    signed map has no -1: its least value is -0.99296875.

    Args:
      signed: whether negative values are there; without them every decade has twice the values.
      max_exponent_bits: number E of decades.
      total_bits: the map has ``2 ** total_bits`` values.

    Returns:
      float32 ``[2 ** total_bits]``, strictly increasing.

    Raises:
      ValueError: unless ``max_exponent_bits == total_bits - 1``, the only case in which the decades fill the map.

    Example:
      >>> values = create_dynamic_map()
      >>> len(values), float(values[127]), float(values[-1])
      (256, 0.0, 1.0)
    """
    if not 2 <= total_bits <= 8:
        raise ValueError(f"total_bits must be in 2..8, codes are bytes, got {total_bits}")
    if max_exponent_bits != total_bits - 1:
        raise ValueError(f"max_exponent_bits must be total_bits - 1 = {total_bits - 1}, got {max_exponent_bits}")
    values = [0.0, 1.0]
    for i in range(max_exponent_bits):
        edges = np.linspace(0.1, 1.0, 2 ** (i if signed else i + 1) + 1)
        decade = 10.0 ** (i - max_exponent_bits + 1) * (edges[1:] + edges[:-1]) / 2
        values.extend(decade)
        if signed:
            values.extend(-decade)
    return np.sort(np.asarray(values)).astype(np.float32)


def create_linear_map(signed: bool = True) -> np.ndarray:
    """Equally spaced values: ``k / 128`` for k = -127..128, or ``k / 255`` for k = 0..255.

    The reference repeats a value of its signed linear map to fill a byte; here all 256 differ, with zero at index 127
    and no -1, as in the dynamic map.

    Returns:
      float32 ``[256]``, strictly increasing.
    """
    values = np.arange(-127, 129) / 128 if signed else np.arange(256) / 255
    return values.astype(np.float32)


@functools.cache
def code_map(name: str) -> np.ndarray:
    """A map by name, made once and read-only.

    Args:
      name: "signed" or "unsigned" (dynamic), "linear_signed" or "linear_unsigned".

    Raises:
      ValueError: another name.
    """
    if name not in MAP_NAMES:
        raise ValueError(f"map must be one of {MAP_NAMES}, got {name!r}")
    make = create_linear_map if name.startswith("linear") else create_dynamic_map
    values = make(not name.endswith("unsigned"))
    values.flags.writeable = False
    return values


def checked_map(code: np.ndarray) -> np.ndarray:
    """``code`` as float32, if it is a map.

    Raises:
      ValueError: not 256 values, not strictly increasing, without 0, or not within [-1, 1].
    """
    values = np.asarray(code, np.float32)
    if values.shape != (256,):
        raise ValueError(f"code must have shape (256,), got {values.shape}")
    if not np.all(np.diff(values) > 0):
        raise ValueError("code must be sorted, without repeated values")
    if values[0] < -1 or values[-1] > 1 or 0.0 not in values:
        raise ValueError(f"code must lie in [-1, 1] and hold 0, got {values[0]} to {values[-1]}")
    return values
