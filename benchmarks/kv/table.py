"""``python -m benchmarks.kv.table``: the committed comparison as a table in docs/kvcache.md; says which wins where."""

import re
from pathlib import Path
from typing import Any

from benchmarks.kv.methods import SHARES
from benchmarks.provenance import RESULTS, read_result
from benchmarks.tables import markdown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kvcache.md"
_SECTION = re.compile(r"(<!-- kv -->\n).*?(<!-- /kv -->)", re.DOTALL)


def section(folder: Path = RESULTS) -> str:
    """KL by share of bytes, retrieval and speed at a quarter, and the winners."""
    result = read_result(folder / "kv.json")
    if result is None:
        return "Not measured yet; `python -m benchmarks.kv` does."
    header = (
        "cache",
        *(f"KL at {100 * share:g} %" for share in SHARES),
        "nats lost at 25 %",
        "code, nats at 25 %",
        "KL late / early at 25 %",
        "speed at 25 %",
    )
    rows = [_cells(row) for row in result["rows"]]
    exact = result["rows"][0]
    note = (
        f"The plain cache finds the code at {exact['dense_needle_nll']:.2f} nats a token with "
        f"{100 * exact['dense_needle_accuracy']:.0f} % of its digits right. Speed is decoded tokens per second as a "
        "ratio to the plain cache on a CPU, where unpacking costs more than the memory it saves."
    )
    wins = " ".join(_winner(result["rows"], share) for share in SHARES)
    source = f"Measured {result['date']} by `{result['command']}`."
    return (
        f"{result['setting']}.\n\n{markdown(header, rows, 'l' + 'r' * (len(header) - 1))}\n\n{note} {wins}\n\n{source}"
    )


def _at(row: dict[str, Any], share: float) -> dict[str, Any] | None:
    return next((point for point in row["points"] if point["share"] == share), None)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    kl = [(f"{point['kl']:.4f}" if (point := _at(row, share)) else "-") for share in SHARES]
    quarter = _at(row, 0.25)
    if quarter is None:
        return (row["name"], *kl, "-", "-", "-", "-")
    needle = "-" if quarter["needle_nll"] is None else f"{quarter['needle_nll']:.2f}"
    drift = quarter["kl_last_quarter"] / max(quarter["kl_first_quarter"], 1e-12)
    lost = f"{quarter['nll_lost']:.3f} ± {quarter['nll_lost_error']:.3f}"
    return (row["name"], *kl, lost, needle, f"{drift:.2f}", f"{quarter['speed']:.2f}")


def _winner(rows: list[dict[str, Any]], share: float) -> str:
    found = [(point, row["name"]) for row in rows if (point := _at(row, share))]
    if not found:
        return f"Nothing fits {100 * share:g} %."
    text = min(found, key=lambda pair: pair[0]["kl"])[1]
    codes = [pair for pair in found if pair[0]["needle_nll"] is not None]
    best = f", {min(codes, key=lambda pair: pair[0]['needle_nll'])[1]} in retrieval" if codes else ""
    return f"At {100 * share:g} % {text} is first on text{best}."


def filled(text: str, folder: Path = RESULTS) -> str:
    """A document with its section ``<!-- kv -->`` written from the committed result."""
    return _SECTION.sub(lambda found: f"{found[1]}{section(folder)}\n{found[2]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
