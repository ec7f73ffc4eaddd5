"""``python -m benchmarks.quantize [--only WORD ...] [--quick]``: writes ``results/quantize.json`` and ``.png``."""

import sys

from benchmarks.one_process import measure_rows, row_arguments, run_module
from benchmarks.provenance import provenance, read_result
from benchmarks.quantize.methods import runs
from benchmarks.quantize.plot import plot

_SETTING = (
    "SmolLM2-135M-Instruct; the 210 projections compressed; calibration on 32 x 512 tokens of wikipedia:train, "
    "perplexity on 8 x 512 tokens of wikipedia:test; seconds include compilation; one process per row"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes after every row, and plots."""
    names = [run.name for run in runs()]
    todo, flags, results = row_arguments(
        "python -m benchmarks.quantize",
        "Seconds, memory, perplexity.",
        names,
        "two blocks, short windows; shows that it works",
        arguments,
    )
    path = results / "quantize.json"
    command = " ".join(["python -m benchmarks.quantize", *flags])
    speed = (read_result(path) or {"speed": None})["speed"]
    if todo == names or speed is None:
        speed = {**run_module("benchmarks.quantize.speed", *flags), **provenance(command)}
        print(f"calibration at {speed['ratio']:.2f} of the FLOP/s of a plain forward pass", flush=True)

    def after(row, result):
        print(
            f"{row['name']:28} {row['bits_per_weight']:6.3f} bits  perplexity {row['perplexity']:9.2f}  "
            f"{row['cpu_seconds']:6.1f} CPU s  {row['peak_mb']} MB",
            flush=True,
        )
        plot(result, results / "quantize.png")

    about = {"setting": _SETTING, "speed": speed}
    measure_rows("benchmarks.quantize.row", todo, names, path, command, flags, about, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
