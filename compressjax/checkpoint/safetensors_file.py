"""Safetensors files read by byte range.

The ``safetensors`` package maps the whole file, and pages touched in a map count as resident memory, which defeats
streaming; it also reads neither bfloat16 into numpy nor members of an archive. The format is an 8-byte little-endian
header length, a JSON header and raw little-endian data (https://huggingface.co/docs/safetensors).
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U64": np.dtype("<u8"),
        "U32": np.dtype("<u4"),
        "U16": np.dtype("<u2"),
        "U8": np.dtype("u1"),
        "BOOL": np.dtype("?"),
    }
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Place of one tensor: byte offset from the start of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class SafetensorsFile:
    """An opened file: only the header is in memory.

    Attributes:
      path: the file.
      entries: tensors by name.
      metadata: the header's own strings.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype.

        Raises:
          ValueError: the file has become shorter since it was opened.
        """
        entry = self.entries[name]
        values = np.fromfile(self.path, entry.dtype, math.prod(entry.shape), offset=entry.offset)
        if values.nbytes != entry.nbytes:
            raise ValueError(
                f"{self.path}: truncated in tensor {name}: wanted {entry.nbytes} bytes, got {values.nbytes}"
            )
        return values.reshape(entry.shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read the header of a safetensors file and check it against the file's size.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not safetensors, damaged, or truncated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no safetensors file at {path}")
    with path.open("rb") as file:
        entries, metadata = _header(file.read, path.stat().st_size, str(path))
    return SafetensorsFile(path, entries, metadata)


def read_stream(stream: IO[bytes], size: int, where: str) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of a safetensors file read once from front to back, such as a member of a zip archive.

    Args:
      stream: at the start of the file.
      size: bytes in it.
      where: what to call it in messages.

    Yields:
      name and array, in the order of the file.

    Raises:
      ValueError: as ``open_safetensors``.
    """
    entries, _ = _header(stream.read, size, where)
    # Entries follow each other without gaps, which _header has checked.
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        data = stream.read(entry.nbytes)
        if len(data) != entry.nbytes:
            raise ValueError(f"{where}: truncated in tensor {name}: wanted {entry.nbytes} bytes, got {len(data)}")
        yield name, np.frombuffer(data, entry.dtype).reshape(entry.shape)


def _header(read: Callable[[int], bytes], size: int, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    length = int.from_bytes(read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"{where} is not a safetensors file, or is truncated: header of {length} bytes in {size} bytes"
        )
    try:
        header = json.loads(read(length))
        metadata = header.pop("__metadata__", {})
        listed = {}
        for name, entry in header.items():
            start, stop = (int(position) for position in entry["data_offsets"])
            listed[name] = (entry["dtype"], tuple(int(size) for size in entry["shape"]), start, stop)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} has a damaged safetensors header: {error}") from error
    entries, position = {}, 0
    for name, (dtype, shape, start, stop) in sorted(listed.items(), key=lambda item: item[1][2:]):
        if dtype not in DTYPES:
            raise ValueError(
                f"{where}: tensor {name} has dtype {dtype}, which cannot be read; known: {', '.join(DTYPES)}"
            )
        entry = Entry(shape, DTYPES[dtype], 8 + length + start)
        if start != position or stop - start != entry.nbytes or min(shape, default=0) < 0:
            raise ValueError(f"{where}: tensor {name} of shape {shape} and dtype {dtype} has bytes {start} to {stop}")
        entries[name], position = entry, stop
    if 8 + length + position != size:
        raise ValueError(f"{where} is truncated or padded: wanted {8 + length + position} bytes, got {size}")
    return entries, metadata
