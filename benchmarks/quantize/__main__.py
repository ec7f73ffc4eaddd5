"""``python -m benchmarks.quantize [--only WORD ...] [--quick]``: writes ``results/quantize.json`` and ``.png``."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.provenance import RESULTS, provenance, read_result, write_result
from benchmarks.quantize.methods import runs
from benchmarks.quantize.plot import plot

_ROOT = Path(__file__).resolve().parents[2]


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


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes after every row, and plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description="Seconds, memory, perplexity.")
    parser.add_argument("--only", action="append", metavar="WORD", help="rows whose name holds WORD; keeps the others")
    parser.add_argument("--quick", action="store_true", help="two blocks, short windows; shows that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    if args.quick and args.results == RESULTS:
        parser.error("--quick gives no evidence: name another folder with --results")
    path, flags = args.results / "quantize.json", ["--quick"] if args.quick else []
    before = read_result(path) or {"rows": [], "speed": None}
    known = {row["name"]: row for row in before["rows"]}
    chosen = [run for run in runs() if not args.only or any(word in run.name for word in args.only)]
    if not chosen:
        parser.error(f"no row holds {args.only}; rows are {', '.join(run.name for run in runs())}")
    command = " ".join(["python -m benchmarks.quantize", *flags])
    speed = before["speed"]
    if not args.only or speed is None:
        speed = {**run_module("benchmarks.quantize.speed", *flags), **provenance(command)}
        print(f"calibration at {speed['ratio']:.2f} of the FLOP/s of a plain forward pass", flush=True)
    for run in chosen:
        row = run_module("benchmarks.quantize.row", run.name, *flags)
        known[run.name] = {**row, **provenance(command)}
        print(
            f"{run.name:28} {row['bits_per_weight']:6.3f} bits  perplexity {row['perplexity']:9.2f}  "
            f"{row['cpu_seconds']:6.1f} CPU s  {row['peak_mb']} MB",
            flush=True,
        )
        result = {
            **provenance(command),
            "setting": (
                "SmolLM2-135M-Instruct; the 210 projections compressed; calibration on 32 x 512 tokens of "
                "wikipedia:train, perplexity on 8 x 512 tokens of wikipedia:test; seconds include compilation; one "
                "process per row"
            ),
            "rows": [known[run.name] for run in runs() if run.name in known],
            "speed": speed,
        }
        write_result(path, result)
        plot(result, args.results / "quantize.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
