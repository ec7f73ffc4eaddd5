"""Claims as rows of figures: what is asserted, what is only printed, and what cannot be compared.

A claim script defines ``METHOD``, ``CLAIM``, ``SETTING`` and ``PARTS``. A claim holds when all its asserted rows hold;
one without asserted rows says nothing and is refused. Parts can be measured one at a time: a run replaces the rows of
the parts it measured and keeps the others, each part with the command, date and machine of its own run.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.provenance import provenance, read_result, write_result

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a claim that can be measured by itself.

    Attributes:
      run: ``quick -> rows``; ``quick`` asks for a small setting that only shows that the code works.
      about: what it measures.
      minutes: what it costs on two free cores.
    """

    run: Callable[[bool], list[Row]]
    about: str
    minutes: float


def asserted(
    name: str,
    *,
    baseline: float,
    ours: float,
    limit: float = 1.0,
    strict: bool = True,
    bits: float | None = None,
    baseline_bits: float | None = None,
    equal_bits: bool = True,
    unit: str = "",
    note: str = "",
) -> Row:
    """A row the claim stands on: ``ours < limit * baseline`` (``<=`` unless ``strict``), lower being better.

    Args:
      name: what is compared.
      baseline, ours: measured values.
      limit: share of the baseline that ours must stay under.
      strict: whether equality fails.
      bits, baseline_bits: bits per weight of ours and of the baseline, all overhead counted.
      equal_bits: whether the row also demands, where both are given, that ours has no more bits. Not so when the
        baseline was free to spend as many and did better with fewer; the note then says so.
      unit: of both values.
      note: anything a reader must know.

    Returns:
      The row; ``margin`` is by how much ours stays under the bound, relative to it.
    """
    bound = limit * baseline
    below = ours < bound if strict else ours <= bound
    # Half a thousandth of a bit: bits of two methods at "equal" size are rarely equal to the last digit.
    fair = not equal_bits or bits is None or baseline_bits is None or bits <= baseline_bits + 5e-4
    return {
        "kind": "asserted",
        "name": name,
        "baseline": baseline,
        "ours": ours,
        "limit": limit,
        "margin": (bound - ours) / bound if bound else 0.0,
        "bits": bits,
        "baseline_bits": baseline_bits,
        "unit": unit,
        "holds": bool(below and fair and math.isfinite(ours)),
        "why": note,
    }


def printed(
    name: str,
    *,
    ours: float | None,
    baseline: float | None = None,
    why: str,
    bits: float | None = None,
    baseline_bits: float | None = None,
    unit: str = "",
) -> Row:
    """A row that is measured and shown but not asserted; ``why`` says why not."""
    margin = None if ours is None or not baseline else (baseline - ours) / baseline
    return {
        "kind": "printed",
        "name": name,
        "baseline": baseline,
        "ours": ours,
        "margin": margin,
        "bits": bits,
        "baseline_bits": baseline_bits,
        "unit": unit,
        "why": _reason(name, why),
    }


def not_comparable(name: str, *, why: str, baseline: float | None = None, unit: str = "") -> Row:
    """A figure of the paper, or of others, that this run cannot be set beside; ``why`` says why not."""
    return {
        "kind": "not_comparable",
        "name": name,
        "baseline": baseline,
        "ours": None,
        "margin": None,
        "bits": None,
        "unit": unit,
        "why": _reason(name, why),
    }


def _reason(name: str, why: str) -> str:
    if not why.strip():
        raise ValueError(f"row {name!r} is not asserted and must say why")
    return why


def judge(rows: Sequence[Row]) -> bool:
    """Whether all asserted rows hold.

    Raises:
      ValueError: no asserted row, so there is no claim; or two rows of one name.
    """
    names = [row["name"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"rows must have names of their own, these occur twice: {twice}")
    verdicts = [row["holds"] for row in rows if row["kind"] == "asserted"]
    if not verdicts:
        raise ValueError("a claim needs at least one asserted row; printed and not comparable rows claim nothing")
    return all(verdicts)


def run_claim(
    script: ModuleType,
    *,
    parts: Sequence[str] | None = None,
    quick: bool = False,
    results: Path,
    log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Measures a claim, or parts of it, and writes ``claims_<slug>.json``.

    Args:
      script: module with ``METHOD``, ``CLAIM``, ``SETTING`` and ``PARTS``.
      parts: which; None for all.
      quick: a small setting; nothing is written, for its figures are no evidence.
      results: folder of results.
      log: told what is being measured.

    Returns:
      The claim as it is stored.

    Raises:
      ValueError: an unknown part, or no asserted row in all that is known.
    """
    every: Mapping[str, Part] = script.PARTS
    chosen = list(every) if parts is None else list(parts)
    unknown = [name for name in chosen if name not in every]
    if unknown:
        raise ValueError(f"{script.METHOD} has no part {unknown}; parts are {list(every)}")
    path = results / f"claims_{script.METHOD}.json"
    before = None if quick else read_result(path)
    known = {} if before is None else {name: part for name, part in before["parts"].items() if name in every}
    rows = [] if before is None else [row for row in before["rows"] if row["part"] in known]
    for name in chosen:
        log(f"{script.METHOD}: {name}: {every[name].about}")
        start = time.perf_counter()
        measured = [{"part": name, **row} for row in every[name].run(quick)]
        seconds = time.perf_counter() - start
        command = f"python -m benchmarks.claims {script.METHOD} --part {name}{' --quick' if quick else ''}"
        known[name] = {"seconds": round(seconds, 1), **provenance(command)}
        rows = [row for row in rows if row["part"] != name] + measured
        if not quick:
            # After each part, so that an interrupted run keeps what it has; judged at the end.
            write_result(path, _claim(script, every, rows, known, holds=None))
    claim = _claim(script, every, rows, known, holds=judge(rows))
    if not quick:
        write_result(path, claim)
    return claim


def _claim(script, every, rows, parts, holds) -> dict[str, Any]:
    rank = {name: place for place, name in enumerate(every)}
    last = max(parts.values(), key=lambda part: part["date"])
    return {
        "method": script.METHOD,
        "claim": script.CLAIM,
        "setting": script.SETTING,
        "rows": sorted(rows, key=lambda row: rank[row["part"]]),
        "holds": holds,
        "seconds": round(sum(part["seconds"] for part in parts.values()), 1),
        "command": f"python -m benchmarks.claims {script.METHOD}",
        "date": last["date"],
        "machine": last["machine"],
        "versions": last["versions"],
        "parts": {name: parts[name] for name in every if name in parts},
    }
