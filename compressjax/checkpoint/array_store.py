"""Arrays on disk through orbax, each with a CRC-32 of its bytes."""

import contextlib
import logging
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from compressjax.checkpoint.tree_codec import StoredArray

# Element types that the storage driver does not know, kept as a wider integer of the same values.
_STORED_AS = {"uint2": "uint8", "uint4": "uint8"}
_SMALL = 1 << 16


def write_arrays(directory: Path, arrays: Sequence[StoredArray]) -> list[dict[str, Any]]:
    """Writes arrays below ``directory`` and describes them.

    Arrays without elements are only described. Arrays spread over several processes are written by all of them.

    Returns:
      One JSON-able record per array: path, kind, shape, dtype, crc32, and the name it is stored under or None.
    """
    records, stored = [], {}
    for index, array in enumerate(arrays):
        value = array.value
        dtype = str(value.dtype)
        if dtype in _STORED_AS:
            value = value.astype(_STORED_AS[dtype])
        name = None
        if math.prod(value.shape):
            name = f"{index:05d}.{re.sub(r'[^A-Za-z0-9_-]+', '.', array.path)}"
            stored[name] = value
        records.append(
            {
                "path": array.path,
                "kind": array.kind,
                "shape": list(value.shape),
                "dtype": dtype,
                "crc32": checksum(value),
                "name": name,
            }
        )
    if stored:
        with _without_tracebacks_of_threads(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(stored))
    return records


def read_arrays(directory: Path, records: Sequence[dict[str, Any]], shardings: Sequence[Any]) -> list[Any]:
    """Reads arrays written by :func:`write_arrays`.

    Args:
      directory: where they are.
      records: their descriptions.
      shardings: one ``jax.sharding.Sharding`` or None per array; None gives an uncommitted array on the default device.

    Raises:
      ValueError: when an array is missing or its shape, dtype or checksum is not the recorded one.
    """
    wanted, how = {}, {}
    for record, sharding in zip(records, shardings, strict=True):
        if record["name"] is None:
            continue
        shape, dtype = tuple(record["shape"]), jnp.dtype(_STORED_AS.get(record["dtype"], record["dtype"]))
        wanted[record["name"]] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        how[record["name"]] = (
            ocp.RestoreArgs(restore_type=np.ndarray)
            if sharding is None
            else ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype)
        )
    restored = {}
    if wanted:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(directory, args=ocp.args.PyTreeRestore(wanted, restore_args=how))
    out = []
    for record, sharding in zip(records, shardings, strict=True):
        # Popped, so that host copies go as device arrays come.
        out.append(_finish(restored.pop(record["name"]) if record["name"] else None, record, sharding))
    return out


def describe_files(directory: Path) -> dict[str, list[int | None]]:
    """Size and CRC-32 of every file below ``directory`` by relative path; of large files the size alone.

    Large files hold array elements, which have their own checksums; small ones hold the index of the storage driver,
    which it follows on threads that report damage late and noisily.
    """
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        size = path.stat().st_size
        crc = zlib.crc32(path.read_bytes()) if size <= _SMALL else None
        found[path.relative_to(directory).as_posix()] = [size, crc]
    return found


def check_files(directory: Path, recorded: Mapping[str, Sequence[int | None]]) -> None:
    """Compares the files below ``directory`` with what :func:`describe_files` said of them.

    Raises:
      ValueError: naming the first file that is missing, truncated or changed.
    """
    found = describe_files(directory)
    for name, (size, crc) in recorded.items():
        if name not in found:
            raise ValueError(f"{directory / name} is missing: the checkpoint is damaged")
        if found[name][0] != size:
            raise ValueError(f"{directory / name} has {found[name][0]} bytes instead of {size}: it is damaged")
        if found[name][1] != crc:
            raise ValueError(f"{directory / name} is damaged: its bytes do not match the recorded CRC-32")


@contextlib.contextmanager
def _without_tracebacks_of_threads() -> Iterator[None]:
    """Keeps orbax from logging a traceback in every worker thread for an error that is raised to the caller anyway."""

    def keep(record: logging.LogRecord) -> bool:
        return "run() raised an exception" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _finish(value, record, sharding):
    dtype = jnp.dtype(record["dtype"])
    if value is None:
        value = np.zeros(record["shape"], _STORED_AS.get(record["dtype"], dtype))
        value = value if sharding is None else jax.device_put(value, sharding)
    if tuple(value.shape) != tuple(record["shape"]) or checksum(value) != record["crc32"]:
        raise ValueError(f"array {record['path']!r} is damaged: its bytes do not match the recorded CRC-32")
    if record["dtype"] in _STORED_AS:
        value = value.astype(dtype)
    if record["kind"] == "numpy":
        return value
    if value.dtype != jax.dtypes.canonicalize_dtype(value.dtype):
        raise ValueError(f"array {record['path']!r} is {value.dtype}, which needs jax_enable_x64")
    value = jnp.asarray(value)
    if record["kind"].startswith("key:"):
        return jax.random.wrap_key_data(value, impl=record["kind"].removeprefix("key:"))
    return value


def checksum(value: Any) -> int:
    """CRC-32 of an array's elements in C order, the same for every sharding and on every process."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        value = multihost_utils.process_allgather(value, tiled=True)
    flat = np.ascontiguousarray(np.asarray(value)).reshape(-1)
    return zlib.crc32(flat.view(np.uint8).data)
