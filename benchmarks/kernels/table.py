"""``python -m benchmarks.kernels.table``: committed proofs of the kernels as tables in docs/kernels.md."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, read_result

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
_SECTION = re.compile(r"(<!-- kernels:(?P<op>\w+) -->\n).*?(<!-- /kernels -->)", re.DOTALL)

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


def section(op: str, folder: Path = RESULTS) -> str:
    """Table of one operation, with where it comes from."""
    result = read_result(folder / f"kernels_{op}.json")
    if result is None:
        return f"Not compiled yet; `python -m benchmarks.kernels {op} --write` does."
    rule = ["---:" if side == "r" else "---" for side in ALIGN]
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, rule, *map(cells, result["rows"]))]
    source = f"Compiled {result['date']} with jax {result['versions']['jax']} by `{result['command']}`."
    return "\n".join([source, "", *lines])


def filled(text: str, folder: Path = RESULTS) -> str:
    """A document with its sections ``<!-- kernels:OP -->`` written from the committed results."""
    return _SECTION.sub(lambda found: f"{found[1]}{section(found['op'], folder)}\n{found[3]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
