"""One tree of arrays and compressed leaves in one safetensors file, written whole or not at all."""

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from compressjax.checkpoint.tree_codec import describe, plan

_FORMAT = "compressjax-shard-1"


def write_shard(path: Path, tree: Any) -> int:
    """Writes ``tree`` to ``path``; the bytes depend on nothing but the tree.

    The file gets its name only when it is complete and on disk, so a file that exists is whole.

    Returns:
      The file's size in bytes.

    Raises:
      OSError: when it cannot be written; no file is left.
    """
    structure, arrays = describe(tree)
    tensors = {f"{number:04d}.{a.path}": _plain(a.value) for number, a in enumerate(arrays)}
    names = {f"{number:04d}.{a.path}": np.asarray(a.value).dtype.name for number, a in enumerate(arrays)}
    sums = [zlib.crc32(value.tobytes()) for value in tensors.values()]
    # A single metadata entry: safetensors writes several in no fixed order.
    header = json.dumps({"format": _FORMAT, "structure": structure, "dtypes": list(names.values()), "crc32": sums})
    write_whole(path, save(tensors, {"compressjax": header}))
    return path.stat().st_size


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it; on an error nothing is left."""
    staging = path.with_name(f".{path.name}.writing")
    try:
        with open(staging, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            staging.unlink()
        raise


def read_shard(path: Path) -> Any:
    """The tree in a shard, with numpy arrays.

    Raises:
      FileNotFoundError: no such file.
      ValueError: truncated, damaged, or not a shard of this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no shard at {path}")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("compressjax")
            if text is None:
                raise ValueError(f"{path} is a safetensors file, but no shard of compressjax")
            header = json.loads(text)
            if header["format"] != _FORMAT:
                raise ValueError(f"{path} has format {header['format']!r}, this version reads {_FORMAT!r}")
            values = [file.get_tensor(name) for name in sorted(file.keys())]
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
    for value, expected in zip(values, header["crc32"], strict=True):
        if zlib.crc32(value.tobytes()) != expected:
            raise ValueError(f"{path} is damaged: a checksum does not match")
    build, _ = plan(header["structure"])
    return build([v.view(_dtype(name)) for v, name in zip(values, header["dtypes"], strict=True)])


def _plain(value):
    """The array in a dtype that every safetensors reader for numpy knows; bfloat16 travels as its bits."""
    array = np.ascontiguousarray(value)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _dtype(name):
    return np.dtype(jnp.bfloat16) if name == "bfloat16" else np.dtype(name)
