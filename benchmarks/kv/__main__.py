"""``python -m benchmarks.kv [--only WORD ...] [--quick]``: writes ``results/kv.json`` and ``.png``, prints a table."""

import sys

from benchmarks.kv.methods import families
from benchmarks.kv.plot import plot
from benchmarks.one_process import measure_rows, row_arguments

_SETTING = (
    "SmolLM2-135M-Instruct; prompts of 1024 tokens of WikiText-2 (test), the next 200 scored against the plain cache, "
    "6 windows; a five-digit code in 1024 tokens of Wikipedia, 8 questions; every family with its largest config "
    "within 50, 25, 12.5 and 6 % of a plain 16-bit cache's bytes, all that is stored counted; bases without training"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes after every row, and plots."""
    names = [family.name for family in families()]
    todo, flags, results = row_arguments(
        "python -m benchmarks.kv",
        "Caches at equal true bytes.",
        names,
        "two blocks, short prompts; shows that it works",
        arguments,
    )

    def after(row, result):
        for point in row["points"]:
            needle = "-" if point["needle_nll"] is None else f"{point['needle_nll']:.2f}"
            print(
                f"{row['name']:24} {point['bytes']:6.3f} of bytes  KL {point['kl']:7.4f}  lost {point['nll_lost']:7.4f}"
                f"  needle {needle}  speed {point['speed']:.2f}",
                flush=True,
            )
        plot(result, results / "kv.png")

    command = " ".join(["python -m benchmarks.kv", *flags])
    about = {"setting": _SETTING}
    measure_rows("benchmarks.kv.row", todo, names, results / "kv.json", command, flags, about, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
