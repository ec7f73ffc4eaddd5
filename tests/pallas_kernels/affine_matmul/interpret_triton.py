"""``python interpret_triton.py IN.npz OUT.npy``: Triton's interpreter runs the kernel in Triton's language on the host.

The interpreter is chosen when a kernel is defined, so this is a process of its own, started with TRITON_INTERPRET=1.
"""

import json
import sys

import numpy as np

from pallas_kernels.affine_matmul.triton_language import affine_matmul_in_triton


class HostTensor:
    """A numpy array with the methods of a torch tensor that the interpreter calls."""

    def __init__(self, array):
        self.array = array

    @property
    def dtype(self):
        return str(self.array.dtype)

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return HostTensor(self.array)

    def set_(self, storage, *_):
        self.array = storage.array

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    def stride(self):
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def copy_(self, other):
        self.array[...] = other.array


def main(source: str, target: str) -> None:
    given = np.load(source)
    meta = json.loads(str(given["meta"]))
    x, codes, scale, zero = (given[name] for name in ("x", "codes", "scale", "zero"))
    y = np.full((meta.pop("splits"), meta["M"], meta["COLS"]), np.nan, np.float32)
    grid = (-(-meta["COLS"] // meta["BLOCK_N"]), -(-meta["M"] // meta["BLOCK_M"]), y.shape[0])
    affine_matmul_in_triton[grid](*map(HostTensor, (x, codes, scale, zero, y)), **meta)
    np.save(target, y)


if __name__ == "__main__":
    main(*sys.argv[1:])
