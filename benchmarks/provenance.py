"""Where a figure comes from: command, date, machine and versions, in every result, and nothing that names a host."""

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
"""Folder of committed results."""

_PACKAGES = ("compressjax", "jax", "jaxlib", "flax", "numpy")


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, memory, operating system and Python; never a host name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide a figure; those that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(command: str) -> dict[str, Any]:
    """What every result carries.

    Args:
      command: what to type to measure again.
    """
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "load": round(os.getloadavg()[0], 1),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes JSON whole or not at all; NaN and infinity are refused, for JSON has neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".partial")
    try:
        with staging.open("w", encoding="utf-8") as file:
            json.dump(result, file, indent=1, allow_nan=False, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def read_result(path: Path) -> dict[str, Any] | None:
    """A result, or None when it has not been measured yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
