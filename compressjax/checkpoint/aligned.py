"""Host arrays that a CPU device takes over as they are, where a copy would hold a model twice."""

from typing import Any

import jax
import numpy as np

_ALIGNMENT = 64  # bytes; XLA's for arrays on CPUs


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that starts where a CPU device needs it."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def to_device(array: np.ndarray) -> jax.Array:
    """Puts an array on the default device; it must not be written to afterwards.

    On CPUs an aligned array becomes the device's own memory. jax lets go of an array that it had to copy only some
    calls later, so one that is not aligned is copied here first.
    """
    if array.ctypes.data % _ALIGNMENT or not array.flags.c_contiguous:
        copy = aligned_empty(array.shape, array.dtype)
        copy[...] = array
        array = copy
    return jax.device_put(array)
