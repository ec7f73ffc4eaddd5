"""Committed proofs of the kernels as rows of a table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, read_result

HEADER = (
    "case",
    "GPU",
    "regs",
    "spill",
    "shared KB",
    "blocks/SM",
    "tensor-core instruction",
    "128-bit / narrow loads",
    "bytes / least",
    "XLA's bytes / ours",
    "floor us",
)
ALIGN = "llrrrrlrrrr"


def results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Committed results of all operations, by name."""
    found = (read_result(path) for path in sorted(folder.glob("kernels_*.json")))
    return [result for result in found if result is not None and "rows" in result]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    facts = row["kernels"]

    def joined(values: Iterable[Any]) -> str:
        return ", ".join(str(value) for value in values)

    names = sorted({name for kernel in facts for name in kernel["tensor_core"]})
    return (
        row["case"],
        row["target"],
        joined(kernel["registers"] for kernel in facts),
        joined(kernel["spilled_bytes"] + kernel["local_memory"] for kernel in facts),
        joined(round(kernel["shared_bytes"] / 1024) for kernel in facts),
        joined(kernel["blocks_per_sm"] for kernel in facts),
        joined(names) or "none",
        joined(f"{kernel['loads_128']} / {kernel['loads_narrow']}" for kernel in facts),
        f"{row['moved_bytes'] / row['least_bytes']:.3f}",
        f"{row['xla_bytes'] / row['moved_bytes']:.1f}" if "xla_bytes" in row else "-",
        f"{row['least_us']:.2f}",
    )
