"""The tables of a GGUF file: metadata and where each tensor lies.

The ``gguf`` package knows the storage types and dequantises them. Its file reader is not used: it keeps an array object
for every token of the vocabulary (2.4 s and 130 MB to open a file of 98 MB, against 0.1 s and the lists alone), and a
damaged array length sends it into a loop without end. Tensors are read by byte range, because pages touched in a
memory map count as resident memory until the map is closed. Format: GGUF specification, versions 2 and 3
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

_CHUNK = 1 << 21  # weights dequantised at a time, since doing so takes temporaries several times their size
_MOST_DIMENSIONS = 4  # of a tensor, by the specification
_ALIGNMENT = 32  # bytes, where the file states none

_SCALARS = {
    GGUFValueType.UINT8: np.dtype("u1"),
    GGUFValueType.INT8: np.dtype("i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.BOOL: np.dtype("?"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Place of one tensor.

    Attributes:
      shape: outermost axis first, as numpy has it; the file lists the innermost first.
      kind: storage type.
      offset, nbytes: where its bytes lie in the file.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class GGUFTable:
    """What a GGUF file says about itself.

    Attributes:
      path: the file.
      metadata: values as Python numbers, strings and lists.
      tensors: places by name.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    def read(self, name: str) -> np.ndarray:
        """Dequantise one tensor to float32.

        Raises:
          ValueError: the file ended early, or the storage type is one the ``gguf`` package cannot dequantise.
        """
        tensor = self.tensors[name]
        values = np.empty((math.prod(tensor.shape[:-1]), tensor.shape[-1]), np.float32)
        width = tensor.nbytes // len(values)
        step = max(1, _CHUNK // tensor.shape[-1])
        for start in range(0, len(values), step):
            part = values[start : start + step]
            raw = np.fromfile(self.path, np.uint8, len(part) * width, offset=tensor.offset + start * width)
            if raw.size != len(part) * width:
                raise ValueError(f"{self.path}: truncated in tensor {name}: {tensor.nbytes} bytes wanted")
            try:
                part[:] = dequantize(raw.reshape(len(part), width), tensor.kind)
            except NotImplementedError:
                raise ValueError(f"{self.path}: tensor {name} has unreadable type {tensor.kind.name}") from None
        return values.reshape(tensor.shape)


def read_table(path: Path) -> GGUFTable:
    """Parse the tables of a GGUF file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not GGUF, damaged, truncated, big-endian, or one part of several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            metadata, tensors = _Parser(file, size).tables()
        except ValueError as error:
            raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path} is one of {metadata['split.count']} parts; merge them with llama-gguf-split first")
    for name, tensor in tensors.items():
        if tensor.offset + tensor.nbytes > size:
            end = tensor.offset + tensor.nbytes
            raise ValueError(f"{path} is truncated: tensor {name} ends at byte {end}, the file at {size}")
    return GGUFTable(path, metadata, tensors)


class _Parser:
    """Reads a file from its start; every length is checked against what is left before anything is allocated."""

    def __init__(self, file: IO[bytes], size: int):
        self.file = file
        self.left = size

    def tables(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self.number("<u4")
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0
            raise ValueError("it is big-endian" if swapped else f"its version is {version}, not 2 or 3")
        tensor_count, entry_count = self.number("<u8"), self.number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"the key {key} occurs twice")
            metadata[key] = self.value(self.number("<u4"))
        places = [self.place() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors = {name: dataclasses.replace(place, offset=start + place.offset) for name, place in places}
        if len(tensors) != len(places):
            raise ValueError("two tensors have one name")
        return metadata, tensors

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"truncated or damaged: {count} bytes wanted, {self.left} left")
        self.left -= count
        return self.file.read(count)

    def number(self, dtype: str) -> int:
        return int.from_bytes(self.take(np.dtype(dtype).itemsize), "little")

    def string(self) -> str:
        return self.take(self.number("<u8")).decode("utf-8")

    def value(self, kind: int) -> Any:
        kind = GGUFValueType(kind)
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.scalars(kind, 1)[0]
        kind, count = GGUFValueType(self.number("<u4")), self.number("<u8")
        if kind == GGUFValueType.ARRAY:
            raise ValueError("arrays of arrays are not supported")
        return [self.string() for _ in range(count)] if kind == GGUFValueType.STRING else self.scalars(kind, count)

    def scalars(self, kind: GGUFValueType, count: int) -> list:
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def place(self) -> tuple[str, GGUFTensor]:
        name, dimensions = self.string(), self.number("<u4")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        kind, offset = GGMLQuantizationType(self.number("<u4")), self.number("<u8")
        weights, nbytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % weights or 0 in shape:
            raise ValueError(f"tensor {name} of shape {shape} cannot be stored in blocks of {weights} ({kind.name})")
        return name, GGUFTensor(shape, kind, offset, math.prod(shape) // weights * nbytes)
