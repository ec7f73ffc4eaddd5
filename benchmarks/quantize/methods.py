"""What is measured: one row per method and bits."""

from typing import Any, NamedTuple

from compressjax.quantization import GPTQ, RTN


class Run(NamedTuple):
    """One row of the benchmark.

    Attributes:
      name: unique, also its name on the command line.
      method: the curve it belongs to.
      cfg: config, or None for the original model.
      streaming: compress from disk to disk, block by block, instead of in memory.
    """

    name: str
    method: str
    cfg: Any
    streaming: bool = False


def runs() -> tuple[Run, ...]:
    """All rows in order; bits are those of the codes, true bits are measured."""
    found = [Run("float32", "float32", None)]
    for bits in (4, 3, 2):
        # One table of levels per output costs about what uniform groups of 96 (3 bits) and 192 (2 bits) do.
        options = {
            "RTN": RTN(bits=bits, group=64),
            "RTN mse": RTN(bits=bits, group=64, grid="mse"),
            "GPTQ": GPTQ(bits=bits, group=64),
            "GPTQ mse": GPTQ(bits=bits, group=64, grid="mse"),
            "GPTQ hessian": GPTQ(bits=bits, group=64, grid="hessian"),
            "GPTQ k-means": GPTQ(bits=bits, group=-1, levels="kmeans"),
        }
        found += [Run(f"{method}, {bits} bits", method, cfg) for method, cfg in options.items()]
    found.append(Run("GPTQ, 3 bits, streaming", "GPTQ streaming", GPTQ(bits=3, group=64), streaming=True))
    return tuple(found)


def run_named(name: str) -> Run:
    """The row of that name.

    Raises:
      ValueError: there is none; the message lists them.
    """
    for run in runs():
        if run.name == name:
            return run
    raise ValueError(f"no row {name!r}; rows are {[run.name for run in runs()]}")
