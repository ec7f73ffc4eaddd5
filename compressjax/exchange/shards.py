"""Safetensors files of a model, written as tensors come."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Collects tensors and writes a file whenever the next tensor would exceed the limit.

    Args:
      folder: existing folder.
      limit: bytes of tensors per file; one larger tensor gets a file of its own.
    """

    def __init__(self, folder: Path, limit: int):
        if limit < 1:
            raise ValueError(f"max_shard_bytes must be >= 1, got {limit}")
        self._folder = folder
        self._limit = limit
        self._pending: dict[str, np.ndarray] = {}
        self._written: list[tuple[Path, list[str]]] = []
        self._names: set[str] = set()
        self._bytes = 0

    def add(self, tensors: dict[str, np.ndarray]) -> None:
        """Takes tensors by full name.

        Raises:
          ValueError: a name was given before.
        """
        for name, value in tensors.items():
            if name in self._names:
                raise ValueError(f"tensor {name} was added before")
            self._names.add(name)
            if self._pending and sum(t.nbytes for t in self._pending.values()) + value.nbytes > self._limit:
                self._flush()
            self._pending[name] = np.ascontiguousarray(value)
            self._bytes += value.nbytes

    def finish(self) -> None:
        """Writes what is left, gives the files their final names and, when there are several, writes the index."""
        self._flush()
        if len(self._written) == 1:
            self._written[0][0].rename(self._folder / SINGLE)
            return
        placed = {}
        for number, (path, names) in enumerate(self._written, 1):
            final = f"model-{number:05d}-of-{len(self._written):05d}.safetensors"
            path.rename(self._folder / final)
            placed |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(placed.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self._pending:
            path = self._folder / f"part-{len(self._written):05d}.safetensors"
            # transformers refuses a file that does not say who its arrays were laid out for.
            save_file(self._pending, path, metadata={"format": "pt"})
            self._written.append((path, list(self._pending)))
            self._pending = {}
