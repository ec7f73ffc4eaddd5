"""``python -m benchmarks.quality [--only WORD ...] [--quick]``: writes ``results/quality.json`` and ``.png``."""

import sys

from benchmarks.one_process import measure_rows, row_arguments
from benchmarks.quality.methods import methods
from benchmarks.quality.plot import plot

_SETTING = (
    "SmolLM2-135M-Instruct as shipped, the 210 projections compressed, the embedding left in float; WikiText-2: "
    "calibration on 32 x 512 tokens of the validation file, perplexity on 30 x 1024 of the test file, KL on 8 of them; "
    "5 tasks of 100 questions, length-normalised accuracy"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes after every row, and plots."""
    names = [method.name for method in methods()]
    todo, flags, results = row_arguments(
        "python -m benchmarks.quality",
        "Quality at equal true bits.",
        names,
        "two blocks, short windows; shows that it works",
        arguments,
    )

    def after(row, result):
        accuracy = [value for name, value in row["tasks"].items() if not name.endswith("probability")]
        print(
            f"{row['name']:28} {row['bits_per_weight']:6.3f} bits  perplexity {row['perplexity']:9.2f}  "
            f"KL {row['kl']:6.3f}  tasks {sum(accuracy) / len(accuracy):.3f}  {row['cpu_seconds']:6.1f} CPU s",
            flush=True,
        )
        plot(result, results / "quality.png")

    command = " ".join(["python -m benchmarks.quality", *flags])
    about = {"setting": _SETTING}
    measure_rows("benchmarks.quality.row", todo, names, results / "quality.json", command, flags, about, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
