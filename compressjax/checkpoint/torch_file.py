"""PyTorch checkpoints of plain tensors, read without PyTorch and without running what the pickle asks for.

A ``.pth`` file is either a zip archive, with the object's pickle in ``*/data.pkl`` and one raw storage in each
``*/data/<key>``, or (before PyTorch 1.6) a row of five pickles (magic number, protocol, system facts, object, storage
keys) followed by, for every key, an int64 count and the raw values. Both are little-endian.
"""

import io
import math
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch.serialization

_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "DoubleStorage": np.dtype("<f8"),
        "FloatStorage": np.dtype("<f4"),
        "HalfStorage": np.dtype("<f2"),
        "BFloat16Storage": np.dtype(jnp.bfloat16),
        "LongStorage": np.dtype("<i8"),
        "IntStorage": np.dtype("<i4"),
        "ShortStorage": np.dtype("<i2"),
        "CharStorage": np.dtype("i1"),
        "ByteStorage": np.dtype("u1"),
        "BoolStorage": np.dtype("?"),
    }
)


_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


# What the unpickler hands out is immutable and without __setstate__, so that no opcode can change it.
class _Storage(NamedTuple):
    key: str
    kind: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or len(size) != len(stride) or any(type(n) is not int for n in numbers):
        raise ValueError(f"damaged tensor: offset, size, stride {short((offset, size, stride))} of {short(storage)}")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict needs and nothing else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda *args: _rebuild_tensor(*args)  # a fresh function, as a pickle may set attributes on it
            case "torch._utils", "_rebuild_parameter":
                return lambda *args: _rebuild_parameter(*args)
        raise ValueError(f"it refers to {module}.{name}, which a dict of plain tensors does not need")

    def persistent_load(self, pid: Any) -> _Storage:
        # The older layout adds which part of a storage is meant; None, all of it, is what tensors by offset need.
        if isinstance(pid, tuple) and len(pid) == 6 and pid[5] is None:
            pid = pid[:5]
        match pid:
            case ("storage", str(kind), str(key), _, int(count)):
                storage = _Storage(key, kind, count)
            case _:
                raise ValueError(f"unknown reference to a storage {short(pid)}")
        if kind not in _DTYPES or count < 0 or self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"unknown or contradictory storage {storage}, first stated as {self.storages.get(key)}")
        return storage


def _unpickle(file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The next object of a file and the storages it refers to; leaves the file behind the object."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        # The unpickler keeps a table as long as the largest index, so a few damaged bytes could ask for gigabytes.
        if opcode.name in _MEMO_WRITES and isinstance(argument, int) and argument > (position or 0) - start:
            raise ValueError(f"its pickle stores object {argument} before it can have that many")
    end = file.tell()
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(end - start)))
    return unpickler.load(), unpickler.storages


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dict by name.

    Args:
      path: a file that ``torch.save`` wrote, of either layout, whose object is a dict of tensors or parameters.

    Returns:
      Read-only arrays with the sizes and strides of the tensors; those that share a storage share memory. bfloat16 is
      that of JAX.

    Raises:
      FileNotFoundError: no such file.
      ValueError: neither layout, truncated or damaged, another byte order, something else than a dict of tensors, or
        a pickle that refers to anything but tensors and dicts; the message names it.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_stream(file)
        except (
            *(ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, MemoryError, RecursionError),
            *(NotImplementedError, RuntimeError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
        ) as error:
            # Whatever a damaged pickle or archive trips over means the same to the reader.
            raise ValueError(f"{path} is not a readable PyTorch file of plain tensors: {error}") from error


def _read_zip(file: BinaryIO) -> dict[str, np.ndarray]:
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = set(archive.namelist())
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
        if len(pickles) != 1:
            raise ValueError(f"the archive holds {len(pickles)} files data.pkl, expected one")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and (order := archive.read(f"{folder}byteorder")) != b"little":
            raise ValueError(f"byte order {order!r} is not supported")
        tree, storages = _unpickle(io.BytesIO(archive.read(pickles[0])))

        def read(storage: _Storage) -> bytes:
            name = f"{folder}data/{storage.key}"
            if name not in members:
                raise ValueError(f"the archive has no storage {name}")
            stored, wanted = archive.getinfo(name).file_size, storage.count * _DTYPES[storage.kind].itemsize
            if stored != wanted:
                raise ValueError(f"storage {name} has {stored} bytes, its tensors state {wanted}")
            return archive.read(name)

        return _tensors(tree, storages, read)


def _read_stream(file: BinaryIO) -> dict[str, np.ndarray]:
    file.seek(0)
    if _unpickle(file)[0] != _MAGIC:
        raise ValueError("it is neither a zip archive nor starts with PyTorch's magic number")
    if (protocol := _unpickle(file)[0]) != _PROTOCOL:
        raise ValueError(f"protocol {short(protocol)}, expected {_PROTOCOL}")
    if _unpickle(file)[0]["little_endian"] is not True:
        raise ValueError("a big-endian file is not supported")
    tree, storages = _unpickle(file)
    keys, _ = _unpickle(file)
    if not isinstance(keys, list) or set(keys) != set(storages) or len(keys) != len(set(keys)):
        raise ValueError(f"storage keys {short(keys)} are not those of the tensors")
    raw = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(_exactly(file, 8), "little", signed=True)
        if count != storage.count:
            raise ValueError(f"storage {key} has {count} values, its tensors state {storage.count}")
        raw[key] = _exactly(file, count * _DTYPES[storage.kind].itemsize)
    return _tensors(tree, storages, lambda storage: raw[storage.key])


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"truncated: {size - len(data)} of the {size} bytes of a storage are missing")
    return data


def _tensors(tree: Any, storages: Mapping[str, _Storage], read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, expected a dict of tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError(f"entry {name!r} is a {type(value).__name__}, expected a name and a tensor")
    flat = {key: np.frombuffer(read(storage), _DTYPES[storage.kind]) for key, storage in storages.items()}
    return {name: _view(flat[tensor.storage.key], tensor, name) for name, tensor in tree.items()}


def _view(flat: np.ndarray, tensor: _Tensor, name: str) -> np.ndarray:
    _, offset, size, stride = tensor
    empty = math.prod(size) == 0
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or not (empty or last < flat.size):
        raise ValueError(f"tensor {name}: offset {offset}, size {size}, stride {stride} leave its {flat.size} values")
    if empty:
        return np.zeros(size, flat.dtype)
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)
