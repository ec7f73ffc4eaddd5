"""Benchmarks whose rows are measured one by one, each in a process of its own, and kept as soon as they are there."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, provenance, read_result, write_result

_ROOT = Path(__file__).resolve().parents[1]


def run_module(module: str, *arguments: str) -> dict:
    """Runs a module in a process of its own and reads the JSON object on its last line.

    Raises:
      RuntimeError: it failed; the message ends with what it wrote.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def named(rows: Iterable[Any], name: str) -> Any:
    """The row of that name.

    Raises:
      ValueError: there is none; the message lists them.
    """
    known = {row.name: row for row in rows}
    if name not in known:
        raise ValueError(f"no row {name!r}; rows are {list(known)}")
    return known[name]


def chosen(names: Sequence[str], words: Sequence[str] | None) -> list[str]:
    """The names that hold one of the words; all without words.

    Raises:
      ValueError: none does.
    """
    found = [name for name in names if not words or any(word in name for word in words)]
    if not found:
        raise ValueError(f"no row holds {list(words or ())}; rows are {', '.join(names)}")
    return found


def row_arguments(
    prog: str, description: str, names: Sequence[str], quick: str, arguments: list[str] | None
) -> tuple[list[str], list[str], Path]:
    """Reads ``[--only WORD ...] [--quick] [--results DIR]``; a mistake ends the program with a message.

    Args:
      prog, description: of the program.
      names: of all rows.
      quick: what ``--quick`` does.
      arguments: words after the program's name; None for those of the process.

    Returns:
      Rows to measure, flags for their module, and the folder of results.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--only", action="append", metavar="WORD", help="rows whose name holds WORD; keeps the others")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    if args.quick and args.results == RESULTS:
        parser.error("--quick gives no evidence: name another folder with --results")
    try:
        return chosen(names, args.only), ["--quick"] if args.quick else [], args.results
    except ValueError as error:
        parser.error(str(error))


def measure_rows(
    module: str,
    todo: Sequence[str],
    order: Sequence[str],
    path: Path,
    command: str,
    flags: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    after: Callable[[dict, dict], None] = lambda row, result: None,
) -> dict:
    """Measures rows and writes the result after each; rows measured before stay where they are not measured again.

    Args:
      module: takes a row's name and the flags, prints the row.
      todo: rows to measure now.
      order: names of all rows, as the result lists them.
      path: the result.
      command: what to type to measure again.
      flags: passed on to the module.
      about: further fields of the result.
      after: called with each new row and the result so far.
    """
    known = {row["name"]: row for row in (read_result(path) or {"rows": []})["rows"]}
    result: dict[str, Any] = {"rows": list(known.values())}
    for name in todo:
        known[name] = {**run_module(module, name, *flags), **provenance(command)}
        result = {**provenance(command), **(about or {}), "rows": [known[n] for n in order if n in known]}
        write_result(path, result)
        after(known[name], result)
    return result
