"""The tensors of a checkpoint folder, in one safetensors file or in several with an index."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compressjax.checkpoint.json_file import read_json
from compressjax.checkpoint.safetensors_file import SafetensorsFile, open_safetensors
from compressjax.checkpoint.tensor_checks import check_finite

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class TensorFolder:
    """Tensors by name, whichever file they lie in.

    Attributes:
      path: the folder.
      shards: tensor name -> opened file.
    """

    path: Path
    shards: Mapping[str, SafetensorsFile]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return self.shards[name].entries[name].shape

    def file(self, name: str) -> Path:
        """The file it lies in."""
        return self.shards[name].path

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype."""
        return self.shards[name].read(name)

    def read_float32(self, name: str) -> np.ndarray:
        """One floating tensor as float32.

        Raises:
          ValueError: it holds integers, NaN or infinity.
        """
        values = self.read(name)
        # ml_dtypes' floats are not subtypes of np.floating, but they are not integers or booleans either.
        if np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_:
            raise ValueError(f"{self.file(name)}: tensor {name} should hold floating values, got {values.dtype}")
        values = values.astype(np.float32, copy=False)
        check_finite(values, path=self.file(name), name=name)
        return values


def open_tensor_folder(path: Path) -> TensorFolder:
    """Open ``model.safetensors``, or every shard that ``model.safetensors.index.json`` lists.

    Raises:
      FileNotFoundError: neither is there, or a listed shard is missing.
      ValueError: a damaged file, or a shard without a tensor the index places in it.
    """
    if (path / SINGLE).is_file():
        single = open_safetensors(path / SINGLE)
        return TensorFolder(path, dict.fromkeys(single.entries, single))
    if not (path / INDEX).is_file():
        raise FileNotFoundError(f"{path} holds neither {SINGLE} nor {INDEX}")
    placed = read_json(path / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{path / INDEX} lacks a weight_map")
    for file in sorted(set(placed.values())):
        if Path(file).name != file:
            raise ValueError(f"{path / INDEX} names a shard outside the folder: {file}")
    opened = {file: open_safetensors(path / file) for file in sorted(set(placed.values()))}
    for name, file in placed.items():
        if name not in opened[file].entries:
            raise ValueError(f"{path / file} lacks tensor {name}, which {INDEX} places there")
    # Tensors in a shard that the index leaves out are listed too, so that the check for unknown names sees them.
    shards = {name: shard for shard in opened.values() for name in shard.entries}
    return TensorFolder(path, shards | {name: opened[file] for name, file in placed.items()})
