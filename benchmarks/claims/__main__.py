"""``python -m benchmarks.claims [slug ...] [--part NAME ...] [--quick] [--list]``."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

from benchmarks.claims.harness import run_claim
from benchmarks.provenance import RESULTS

_NOT_CLAIMS = {"__init__", "__main__", "harness"}


def slugs() -> list[str]:
    """Names of all claim scripts."""
    names = (path.stem for path in Path(__file__).resolve().parent.glob("*.py"))
    return sorted(name.replace("_", "-") for name in names if name not in _NOT_CLAIMS)


def script(slug: str) -> ModuleType:
    """The claim script of a method."""
    return importlib.import_module(f"benchmarks.claims.{slug.replace('-', '_')}")


def main(arguments: list[str] | None = None) -> int:
    """Runs claims; 0 when all hold, 1 when one does not, 2 for a mistake in the call."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description="Measure the methods' claims.")
    parser.add_argument("slug", nargs="*", help=f"methods; all when none is named: {', '.join(slugs())}")
    parser.add_argument("--part", action="append", help="measure this part only; may be given again")
    parser.add_argument("--quick", action="store_true", help="a small setting that shows the code works; not stored")
    parser.add_argument("--list", action="store_true", help="list the parts and what they cost, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    unknown = [slug for slug in args.slug if slug not in slugs()]
    if unknown:
        parser.error(f"no claim {', '.join(unknown)}; there are {', '.join(slugs())}")
    if args.part and len(args.slug) != 1:
        parser.error("--part needs exactly one method")
    chosen = args.slug or slugs()
    if args.list:
        for slug in chosen:
            for name, part in script(slug).PARTS.items():
                print(f"{slug:24} {name:12} {part.minutes:5.1f} min  {part.about}")
        return 0
    failed = []
    for slug in chosen:
        try:
            claim = run_claim(script(slug), parts=args.part, quick=args.quick, results=args.results)
        except ValueError as error:
            print(f"{slug}: {error}", file=sys.stderr)
            return 2
        print(json.dumps(claim, ensure_ascii=False), flush=True)
        print(table(claim), file=sys.stderr)
        # A quick setting shows that the code runs; what its rows say is no verdict.
        if not claim["holds"] and not args.quick:
            failed.append(slug)
    if failed:
        print(f"does not hold: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def table(claim: dict) -> str:
    """A claim as lines of text."""
    verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
    lines = [f"{claim['method']}: {verdict} ({claim['seconds']:.0f} s)"]
    for row in claim["rows"]:
        mark = {True: "ok", False: "FAIL", None: "--"}[row.get("holds")]
        cells = [f"  {mark:4} {row['name']:58}"]
        for label in ("baseline", "ours", "bits"):
            value = row.get(label)
            cells.append(f"{label} {value:.5g}" if value is not None else f"{label} --")
        lines.append("  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
