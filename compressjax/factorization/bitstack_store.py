"""A decomposed model on disk, from which any model size is read block by block.

::

    bitstack.json            matrices, loading order, checksums, and what the caller wants to keep
    rest.safetensors         everything that is no block: embedding, norms, input scales
    level-000.safetensors ...   the blocks of one level, tensors "<path>/<layer>/signs", ".../u", ".../v"

The header of a safetensors file is its offset table, so a block is read without the others.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save_file

from compressjax.checkpoint.atomic_directory import find_complete, replacing
from compressjax.checkpoint.json_file import read_json
from compressjax.checkpoint.native_shard import read_shard, write_shard
from compressjax.checkpoint.safetensors_file import SafetensorsFile, open_safetensors
from compressjax.factorization.bitstack_budget import BudgetTable, budget_table
from compressjax.leaf.sign_lowrank import SignLowRank
from compressjax.ops import nbits
from compressjax.select import weights

MANIFEST = "bitstack.json"
_REST = "rest.safetensors"
_FORMAT = 1
_PARTS = ("signs", "u", "v")


class StackedWeight(NamedTuple):
    """One stacked weight of the store.

    Attributes:
      path: in the parameter tree.
      layers: how many matrices it stacks.
      shape: ``(in, out)`` of each.
      tile: rows of signs packed together.
    """

    path: str
    layers: int
    shape: tuple[int, int]
    tile: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BitStackStore:
    """An opened store; blocks stay on disk until they are asked for.

    Matrices are numbered weight by weight, layers inside.

    Attributes:
      folder: where it is.
      weights: the stacked weights.
      levels: blocks per matrix.
      order: int32, matrices in loading order, see ``bitstack_sorting``.
      block_bytes: int64 ``[matrices]``, of one block in memory.
      table: bytes and levels of every prefix of the order, all arrays of the model counted.
      about: what the writer kept with it.
      files: offset tables, one per level.
      checksums: CRC-32 of each block by "<path>/<layer>", one mapping per level.
    """

    folder: Path
    weights: tuple[StackedWeight, ...]
    levels: int
    order: np.ndarray
    block_bytes: np.ndarray
    table: BudgetTable
    about: Mapping[str, Any]
    files: tuple[SafetensorsFile, ...]
    checksums: tuple[Mapping[str, int], ...]

    def read_block(self, weight: StackedWeight, layer: int, level: int) -> tuple[np.ndarray, ...]:
        """Signs, ``u`` and ``v`` of one block.

        Raises:
          ValueError: its bytes are not those that were written.
        """
        key = f"{weight.path}/{layer}"
        parts = tuple(self.files[level].read(f"{key}/{part}") for part in _PARTS)
        if _checksum(parts) != self.checksums[level][key]:
            raise ValueError(f"{self.files[level].path}: block {key} is damaged: its checksum does not match")
        return parts

    def read_rest(self) -> tuple[dict, dict[str, Any]]:
        """The tree without the stacked weights, and their input scales by path."""
        shard = read_shard(self.folder / _REST)
        return jax.tree.map(jnp.asarray, shard["tree"]), jax.tree.map(jnp.asarray, shard["scales"])


def _checksum(parts) -> int:
    total = 0
    for part in parts:
        total = zlib.crc32(np.ascontiguousarray(part).tobytes(), total)
    return total


def stacks_of(params: Any) -> dict[str, SignLowRank]:
    """The stacked sign and low-rank weights of a tree, by path.

    Raises:
      ValueError: there is none, they do not stack layers on one axis, or they differ in number of blocks.
    """
    found = {path: w for path, w in weights(params).items() if isinstance(w, SignLowRank)}
    if not found:
        raise ValueError("params hold no SignLowRank leaf: decompose them first, lowrank(params, BitStack(...))")
    for path, w in found.items():
        if w.loaded.ndim != 1 or w.signs.ndim != 4:
            raise ValueError(f"{path} must stack its layers on one axis, not {w.loaded.ndim}, and share no pool")
    depths = {w.slots.shape[-1] for w in found.values()}
    if len(depths) != 1:
        raise ValueError(f"all weights must have one number of blocks, got {sorted(depths)}")
    return found


def block_bytes_of(stacks: Mapping[str, SignLowRank]) -> np.ndarray:
    """Bytes int64 ``[matrices]`` of a block of each matrix."""
    sizes = []
    for w in stacks.values():
        one = jax.eval_shape(lambda w: tuple(a[0, 0] for a in (w.signs, w.u, w.v)), w)
        sizes += [nbits(one) // 8] * w.loaded.shape[0]
    return np.asarray(sizes, np.int64)


def write_store(
    folder: str | os.PathLike[str], params: Any, order: ArrayLike, *, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a decomposed model; the folder appears whole or not at all.

    Args:
      folder: where; must not hold anything yet.
      params: tree with stacked :class:`SignLowRank` leaves, all blocks in place.
      order: matrices in loading order.
      about: JSON-able facts to keep with it.

    Raises:
      FileExistsError: the folder holds files.
      ValueError: as :func:`stacks_of`, or an order that does not fit.
      OSError: it cannot be written; nothing is left.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; name another folder")
    stacks = stacks_of(params)
    levels = next(iter(stacks.values())).slots.shape[-1]
    order = np.asarray(order, np.int32)
    budget_table(order, block_bytes_of(stacks), 0)
    if order.size != sum(w.loaded.shape[0] for w in stacks.values()) * (levels - 1):
        raise ValueError(f"order has {order.size} blocks, the stacks have {levels} levels")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder, primary=True, barrier=lambda name: None) as staging:
        scales = {path: w.in_scale for path, w in stacks.items() if w.in_scale is not None}
        write_shard(staging / _REST, {"tree": _without(params, stacks), "scales": scales})
        checksums = [_write_level(staging / _level_file(level), stacks, level) for level in range(levels)]
        body = {
            "format": _FORMAT,
            "levels": levels,
            "weights": [[path, w.loaded.shape[0], list(w.shape), w.tile] for path, w in stacks.items()],
            "order": order.tolist(),
            "checksums": checksums,
            "about": dict(about or {}),
        }
        text = json.dumps(body, sort_keys=True)
        (staging / MANIFEST).write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "body": text}))


def _level_file(level: int) -> str:
    return f"level-{level:03d}.safetensors"


def _write_level(path: Path, stacks: Mapping[str, SignLowRank], level: int) -> dict[str, int]:
    tensors, sums = {}, {}
    for name, w in stacks.items():
        place = np.asarray(w.slots)[:, level]
        layers = np.arange(len(place))
        arrays = [np.asarray(a)[layers, place] for a in (w.signs, w.u, w.v)]
        for layer in layers:
            parts = [np.ascontiguousarray(a[layer]) for a in arrays]
            sums[f"{name}/{layer}"] = _checksum(parts)
            tensors |= {f"{name}/{layer}/{part}": value for part, value in zip(_PARTS, parts, strict=True)}
    save_file(tensors, path)
    return sums


def _without(params: Any, paths: Mapping[str, Any], at: str = "") -> Any:
    """The tree without some weights; containers that hold nothing else stay, empty."""
    out = {}
    for key, value in params.items():
        path = f"{at}/{key}" if at else key
        if path not in paths:
            out[key] = _without(value, paths, path) if isinstance(value, Mapping) else value
    return out


def open_store(folder: str | os.PathLike[str]) -> BitStackStore:
    """Opens a store: reads its manifest and the offset tables, no block.

    Raises:
      FileNotFoundError: no store there, or a file of it is missing.
      ValueError: a file is damaged, truncated, or of a newer format; the message names it.
    """
    wanted = Path(folder).expanduser().resolve()
    found = find_complete(wanted)
    if found is None or not (found / MANIFEST).is_file():
        raise FileNotFoundError(f"no BitStack store at {wanted}")
    path = found / MANIFEST
    outer = read_json(path)
    try:
        text = outer["body"]
        if zlib.crc32(text.encode()) != outer["crc32"]:
            raise ValueError(f"{path} is damaged: its content does not match its checksum")
        body = json.loads(text)
        if body["format"] != _FORMAT:
            raise ValueError(f"{path} has format {body['format']!r}, this version reads {_FORMAT}")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    files = tuple(open_safetensors(found / _level_file(level)) for level in range(body["levels"]))
    stacked = tuple(StackedWeight(name, layers, tuple(shape), tile) for name, layers, shape, tile in body["weights"])
    sizes = [
        [sum(files[0].entries[f"{w.path}/0/{part}"].nbytes for part in _PARTS)] * w.layers
        for w in stacked
    ]  # fmt: skip
    block_bytes = np.asarray(sum(sizes, []), np.int64)
    order = np.asarray(body["order"], np.int32)
    shard = read_shard(found / _REST)
    # Per layer: a row of places and the number of blocks, all int32.
    rows = sum(w.layers * (body["levels"] + 1) * 4 for w in stacked)
    base = sum(a.nbytes for a in jax.tree.leaves(shard)) + rows
    return BitStackStore(
        folder=found,
        weights=stacked,
        levels=body["levels"],
        order=order,
        block_bytes=block_bytes,
        table=budget_table(order, block_bytes, base),
        about=body["about"],
        files=files,
        checksums=tuple(body["checksums"]),
    )
