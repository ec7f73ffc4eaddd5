"""``python -m benchmarks.quality [--only WORD ...] [--quick]``: writes ``results/quality.json`` and ``.png``."""

import argparse
import sys
from pathlib import Path

from benchmarks.one_process import chosen, measure_rows
from benchmarks.provenance import RESULTS
from benchmarks.quality.methods import methods
from benchmarks.quality.plot import plot

_SETTING = (
    "SmolLM2-135M-Instruct as shipped, the 210 projections compressed, the embedding left in float; WikiText-2: "
    "calibration on 32 x 512 tokens of the validation file, perplexity on 30 x 1024 of the test file, KL on 8 of them; "
    "5 tasks of 100 questions, length-normalised accuracy"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes after every row, and plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description="Quality at equal true bits.")
    parser.add_argument("--only", action="append", metavar="WORD", help="rows whose name holds WORD; keeps the others")
    parser.add_argument("--quick", action="store_true", help="two blocks, short windows; shows that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    if args.quick and args.results == RESULTS:
        parser.error("--quick gives no evidence: name another folder with --results")
    names = [method.name for method in methods()]
    try:
        todo = chosen(names, args.only)
    except ValueError as error:
        parser.error(str(error))
    flags = ["--quick"] if args.quick else []

    def after(row, result):
        accuracy = [value for name, value in row["tasks"].items() if not name.endswith("probability")]
        print(
            f"{row['name']:28} {row['bits_per_weight']:6.3f} bits  perplexity {row['perplexity']:9.2f}  "
            f"KL {row['kl']:6.3f}  tasks {sum(accuracy) / len(accuracy):.3f}  {row['cpu_seconds']:6.1f} CPU s",
            flush=True,
        )
        plot(result, args.results / "quality.png")

    command = " ".join(["python -m benchmarks.quality", *flags])
    about = {"setting": _SETTING}
    measure_rows("benchmarks.quality.row", todo, names, args.results / "quality.json", command, flags, about, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
