"""``python -m benchmarks.allocation [--only WORD ...] [--quick]``: writes ``results/allocation.json``."""

import sys

from benchmarks.allocation.settings import settings
from benchmarks.allocation.shared_out import BYTE_NETWORK
from benchmarks.one_process import measure_rows, row_arguments

_SETTING = (
    f"{BYTE_NETWORK[0].upper()}{BYTE_NETWORK[1:]}, searched on 128 windows of 128 bytes, measured on 96 others; "
    "SmolLM2-135M-Instruct, searched on 32 x 256 tokens of wikipedia:train, measured on 8 x 512 of wikipedia:test. "
    "Divergence from the original, nats a token, and in brackets the bits per weight spent. Mixed families: GPTQ, GPTQ "
    "repaired by EoRA, and GQSA"
)


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes after every row."""
    names = [setting.name for setting in settings()]
    todo, flags, results = row_arguments(
        "python -m benchmarks.allocation",
        "Searches against each other at equal exact bits.",
        names,
        "small models, short searches; shows that it works",
        arguments,
    )

    def after(row, _):
        cells = "  ".join(f"{name} {own['kl']:.4f} ({own['bits']:.3f})" for name, own in row["choices"].items())
        print(f"{row['name']}: {cells}  {row['cpu_seconds']:.0f} CPU s", flush=True)

    command = " ".join(["python -m benchmarks.allocation", *flags])
    path = results / "allocation.json"
    measure_rows("benchmarks.allocation.row", todo, names, path, command, flags, {"setting": _SETTING}, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
