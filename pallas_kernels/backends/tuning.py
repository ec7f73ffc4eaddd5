"""Block sizes that were measured on this machine's GPU, kept in one JSON file between runs."""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
VARIABLE = "PALLAS_KERNELS_TUNING"
"""Environment variable that names the file; ``~/.cache/pallas_kernels/tuning.json`` when it is not set."""


def tuning_file() -> Path:
    """Where measured block sizes are kept."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "pallas_kernels" / "tuning.json"


def measured(op: str, key: str, kind: type[Config]) -> Config | None:
    """The fastest config that was measured for ``key``, or None.

    Args:
      op: name of the operation.
      key: device, shape and layout as one string.
      kind: dataclass of the config; an entry that no longer fits it is ignored.
    """
    entry = _read(tuning_file()).get(op, {}).get(key)
    names = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**entry) if isinstance(entry, dict) and set(entry) == names else None


def remember(op: str, key: str, config: Any) -> None:
    """Writes ``config`` as the one to use for ``key`` from now on."""
    path = tuning_file()
    entries = dict(_read(path))
    entries[op] = entries.get(op, {}) | {key: dataclasses.asdict(config)}
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".partial")
    staging.write_text(json.dumps(entries, indent=1, sort_keys=True), encoding="utf-8")
    staging.replace(path)
    _read.cache_clear()


@functools.cache
def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
