"""Saving compressed pytrees and reading them back bit for bit.

A checkpoint is a directory: ``compressjax-tree.json`` holds the structure of the tree, the static metadata of its
leaves, checksums and the caller's metadata; ``arrays/`` is an orbax checkpoint; other files are the caller's.
"""

import errno
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from compressjax.checkpoint import array_store, tree_codec
from compressjax.checkpoint.atomic_directory import find_complete, replacing

FORMAT = "compressjax-tree"
VERSION = 1
_MANIFEST = "compressjax-tree.json"
_ARRAYS = "arrays"
_ANY = tree_codec.anything()


def save(
    directory: str | os.PathLike[str],
    tree: Any,
    *,
    overwrite: bool = True,
    metadata: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Saves a tree of arrays and compressed leaves; at any moment a complete checkpoint can be loaded.

    The new version is written beside the old one, flushed to the disk and swapped in by renaming, so a killed save
    leaves the old one and an error leaves nothing behind. Under several processes all of them must call it, with the
    directory on a file system that they share.

    Args:
      directory: where to save; missing parents are made.
      tree: dicts, lists, tuples, None, NamedTuples and other pytree nodes of arrays (any dtype), typed random keys,
        Python scalars and compressed leaves.
      overwrite: whether an existing checkpoint is replaced.
      metadata: JSON-able facts to keep with it, read back by :func:`load_metadata`.
      files: small files to keep with it (a tokenizer, say), by plain file name, read back by :func:`load_files`.

    Raises:
      FileExistsError: when ``directory`` is a checkpoint and ``overwrite`` is false, or is something else than a
        checkpoint: that is never replaced.
      TypeError: for a value that cannot be stored, naming its path.
      ValueError: for a deleted array or a bad file name.
      OSError: when the disk is full or not writable.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/model", {"kernel": jnp.ones((2, 3))}, metadata={"step": 7})
      ...     print(load(f"{folder}/model")["kernel"].shape, load_metadata(f"{folder}/model"))
      (2, 3) {'step': 7}
    """
    final = _absolute(directory)
    _check_replaceable(final, overwrite)
    try:
        metadata_json = json.loads(json.dumps(dict(metadata or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be JSON-able: {error}") from error
    files = dict(files or {})
    for name in files:
        if name != os.path.basename(name) or name in (_MANIFEST, _ARRAYS, "", ".", ".."):
            raise ValueError(f"files: {name!r} is not a plain file name, or is taken by the checkpoint itself")
    structure, arrays = tree_codec.describe(tree)
    primary = jax.process_index() == 0
    try:
        with replacing(final, primary=primary, barrier=_barrier) as staging:
            records = array_store.write_arrays(staging / _ARRAYS, arrays)
            if primary:
                for name, content in files.items():
                    (staging / name).write_bytes(content)
                body = {
                    "format": FORMAT,
                    "version": VERSION,
                    "structure": structure,
                    "arrays": records,
                    "array_files": array_store.describe_files(staging / _ARRAYS),
                    "files": {name: zlib.crc32(content) for name, content in files.items()},
                    "metadata": metadata_json,
                }
                manifest = {"crc32": zlib.crc32(_canonical(body)), **body}
                (staging / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    except Exception as error:
        if _is_disk_full(error):
            raise OSError(
                errno.ENOSPC, "no space left on the disk; the save was undone and an older checkpoint kept", str(final)
            ) from error
        raise


def load(directory: str | os.PathLike[str], *, like: Any = _ANY, shardings: Any = None) -> Any:
    """Loads what :func:`save` stored: the same containers, leaf types, dtypes and bits.

    Args:
      directory: a checkpoint.
      like: tree of arrays, ``jax.ShapeDtypeStruct`` and leaves that the checkpoint must match in structure, shapes and
        dtypes; gives back NamedTuples and other pytree nodes (an optax state), which are dicts without it. Arrays come
        back with the shardings of the arrays in it.
      shardings: a ``jax.sharding.Sharding`` for every array, or a tree of them (None: default device) in which one may
        stand for a whole sub-tree. Without any, arrays are uncommitted on the default device.

    Returns:
      The tree. NumPy arrays come back as NumPy arrays, JAX arrays as JAX arrays.

    Raises:
      FileNotFoundError: when there is no such directory.
      ValueError: when it is not a checkpoint, is damaged, was written by a newer version, holds a leaf type that is
        not registered, or does not match ``like`` or ``shardings``. No partly loaded tree is ever returned.
    """
    found, manifest = _read_manifest(directory)
    records = manifest["arrays"]
    try:
        build, placed = tree_codec.plan(manifest["structure"], like, shardings)
        for index, (template, sharding) in placed.items():
            _check_array(records[index], template, sharding)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error
    array_store.check_files(found / _ARRAYS, manifest["array_files"])
    try:
        arrays = array_store.read_arrays(found / _ARRAYS, records, [placed[i][1] for i in range(len(records))])
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise ValueError(f"{found}: cannot read the arrays: {_first_line(error)}") from error
    return build(arrays)


def load_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``metadata`` of a checkpoint, without reading its arrays; raises as :func:`load` does."""
    return _read_manifest(directory)[1]["metadata"]


def load_files(directory: str | os.PathLike[str]) -> dict[str, bytes]:
    """The ``files`` of a checkpoint by name, checked against their checksums; raises as :func:`load` does."""
    found, manifest = _read_manifest(directory)
    contents = {}
    for name, crc in manifest["files"].items():
        path = found / name
        contents[name] = path.read_bytes() if path.is_file() else b""
        if zlib.crc32(contents[name]) != crc:
            raise ValueError(f"{path} is missing or damaged: its bytes do not match the recorded CRC-32")
    return contents


def is_checkpoint(directory: str | os.PathLike[str]) -> bool:
    """Whether ``directory`` looks like something :func:`save` wrote, whole or damaged."""
    found = find_complete(_absolute(directory))
    return found is not None and (found / _MANIFEST).is_file()


def _absolute(directory) -> Path:
    path = Path(directory).expanduser()
    # A link is followed, so that the directory behind it is replaced and not the link.
    return path.resolve()


def _check_replaceable(final: Path, overwrite: bool):
    if not final.exists():
        if not overwrite and is_checkpoint(final):
            raise FileExistsError(errno.EEXIST, "a checkpoint exists and overwrite is False", str(final))
        return
    if not final.is_dir():
        raise FileExistsError(errno.EEXIST, "is a file, not a checkpoint directory", str(final))
    if any(final.iterdir()):
        if not (final / _MANIFEST).is_file():
            raise FileExistsError(errno.EEXIST, f"holds files but no {_MANIFEST}: not replaced", str(final))
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "a checkpoint exists and overwrite is False", str(final))


def _read_manifest(directory) -> tuple[Path, dict[str, Any]]:
    final = _absolute(directory)
    found = find_complete(final)
    if found is None:
        if final.exists():
            raise ValueError(f"{final} is a file, not a checkpoint directory")
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint", str(final))
    path = found / _MANIFEST
    if not path.is_file():
        raise ValueError(f"{found} is not a compressjax checkpoint: it has no {_MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version, crc = manifest["format"], manifest["version"], manifest["crc32"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from error
    if kind != FORMAT or not isinstance(version, int):
        raise ValueError(f"{path} is of format {kind!r} version {version!r}, wanted {FORMAT!r}")
    if version > VERSION:
        raise ValueError(
            f"{path} is of format version {version}; this release reads up to {VERSION}: update compressjax"
        )
    body = {key: value for key, value in manifest.items() if key != "crc32"}
    if zlib.crc32(_canonical(body)) != crc:
        raise ValueError(f"{path} is damaged: its content does not match its CRC-32")
    return found, manifest


def _canonical(body) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _check_array(record, template, sharding):
    where, shape = record["path"], tuple(record["shape"])
    if template is not None:
        is_key = record["kind"].startswith("key:")
        wants_key = jax.dtypes.issubdtype(template.dtype, jax.dtypes.prng_key)
        # The raw words of a random key have one axis more than the key.
        stored = (shape[:-1] if is_key else shape, "key" if is_key else record["dtype"])
        wanted = (tuple(template.shape), "key" if wants_key else str(template.dtype))
        if stored != wanted:
            raise ValueError(
                f"{where}: {stored[1]}{list(stored[0])} in the checkpoint, {wanted[1]}{list(wanted[0])} in `like`"
            )
    if sharding is not None:
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ValueError(f"{where}: shape {shape} does not fit its sharding: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _barrier(name: str):
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(f"compressjax-save-{name}")
