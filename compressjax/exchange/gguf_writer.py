"""A GGUF file written as tensors come, in place of the old one only when it is whole.

The format puts the table of all tensors before the first of them, so tensors are spooled to a second file in the same
folder and copied behind the table at the end: one tensor at a time is in memory, and the disk holds them twice for a
moment.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from compressjax.exchange.gguf_metadata import Metadata

_ALIGNMENT = 32
_KINDS = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
}
_VALUES = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}


class GGUFFile:
    """Tensors and metadata of a file being written, see :func:`gguf_file`."""

    def __init__(self, spool: BinaryIO):
        self._spool = spool
        self._places: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]] = []
        self.metadata: Metadata = {}

    def add(self, name: str, values: np.ndarray, kind: GGMLQuantizationType | None = None, width: int = 0) -> None:
        """Takes a tensor.

        Args:
          name: full name.
          values: float32, float16 or bfloat16 array; or, with ``kind``, its bytes as uint8 ``[rows, bytes]``.
          kind: block type of bytes.
          width: weights in a row of bytes.

        Raises:
          ValueError: a name given before, or a dtype GGUF lacks.
        """
        if any(name == place[0] for place in self._places):
            raise ValueError(f"tensor {name} was added before")
        if kind is None and values.dtype.name not in _KINDS:
            raise ValueError(f"{name}: GGUF holds {', '.join(_KINDS)}, got {values.dtype.name}")
        shape = values.shape if kind is None else (*values.shape[:-1], width)
        kind = _KINDS[values.dtype.name] if kind is None else kind
        self._places.append((name, shape, kind, values.nbytes))
        self._spool.write(np.ascontiguousarray(values).tobytes())
        self._spool.write(bytes(-values.nbytes % _ALIGNMENT))

    def assemble(self, arch: str, path: Path) -> None:
        """Writes the table and then the tensors to ``path``."""
        writer = GGUFWriter(path, arch)
        for key, value in self.metadata.items():
            kind = GGUFValueType.ARRAY if isinstance(value, list) else _VALUES[type(value)]
            writer.add_key_value(key, value, kind)
        for name, shape, kind, nbytes in self._places:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        self._spool.seek(0)
        with path.open("ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            shutil.copyfileobj(self._spool, file, 1 << 22)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def gguf_file(path: Path, arch: str) -> Iterator[GGUFFile]:
    """Writes ``path`` from what the block adds; after an error there is no trace of it and an older file is as before.

    Args:
      path: absolute, in an existing folder.
      arch: GGUF architecture.
    """
    spool, staging = (path.with_name(f".{path.name}.{part}") for part in ("tensors", "writing"))
    try:
        with spool.open("w+b") as tensors:
            file = GGUFFile(tensors)
            yield file
            file.assemble(arch, staging)
        os.replace(staging, path)
    finally:
        for left in (spool, staging):
            left.unlink(missing_ok=True)
