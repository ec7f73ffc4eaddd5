"""The few PTX instructions that weights are unpacked with, carried out in numpy."""

import functools
from typing import Any

import numpy as np


def run_ptx(source: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What the few PTX instructions in use make of words, uint32."""
    words: dict[str, Any] = {"$1": first, "$2": second}

    def value(name):
        return words[name] if name in words else np.uint32(int(name, 0))

    for line in source.splitlines():
        kind, operands = line.rstrip(";").split(" ", 1)
        out, *inputs = operands.split(", ")
        a, b, *rest = (value(name) for name in inputs)
        if kind == "prmt.b32":
            octets = [(word >> np.uint32(8 * nth)) & np.uint32(255) for word in (a, b) for nth in range(4)]
            picks = [int(rest[0]) >> 4 * nth & 15 for nth in range(4)]
            words[out] = functools.reduce(np.bitwise_or, (octets[p] << np.uint32(8 * n) for n, p in enumerate(picks)))
        else:
            words[out] = {"shl.b32": np.left_shift, "and.b32": np.bitwise_and}[kind](a, b)
    return words["$0"]
