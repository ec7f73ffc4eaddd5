"""What is measured: one row per method and bits."""

from typing import Any, NamedTuple

from benchmarks.one_process import named
from benchmarks.quality.methods import Method, methods
from compressjax.quantization import GPTQ, RTN


class Run(NamedTuple):
    """One row of the benchmark.

    Attributes:
      name: unique, also its name on the command line.
      method: the curve it belongs to.
      cfg: config, or None for the original model.
      streaming: compress from disk to disk, block by block, instead of in memory.
      fisher: whether the method needs gradients of the loss instead of inputs.
      inputs: whether it changes what its weights read, so that the leaves must run as they are.
    """

    name: str
    method: str
    cfg: Any
    streaming: bool = False
    fisher: bool = False
    inputs: bool = False


OTHERS = (
    "SqueezeLLM, 3 bits",
    "SpQR, 3 bits",
    "decoupleQ, 3 bits",
    "NUPES, 3 bits",
    "GQSA, 3 bits",
    "BitStack, 2 bits",
    "COMET W4A8, 4 bits",
)
"""Rows of benchmarks.quality of which seconds and memory are measured too, with the same configs."""


def runs() -> tuple[Run, ...]:
    """All rows in order; bits are those of the codes, true bits are measured."""
    found = [Run("float32", "float32", None)]
    for bits in (4, 3, 2):
        found += [
            Run(f"RTN, {bits} bits", "RTN", RTN(bits=bits, group=64)),
            Run(f"GPTQ, {bits} bits", "GPTQ", GPTQ(bits=bits, group=64)),
        ]
    # One table of levels per output costs about what uniform groups of 96 do.
    options = {
        "RTN mse": RTN(bits=3, group=64, grid="mse"),
        "GPTQ mse": GPTQ(bits=3, group=64, grid="mse"),
        "GPTQ hessian": GPTQ(bits=3, group=64, grid="hessian"),
        "GPTQ k-means": GPTQ(bits=3, group=-1, levels="kmeans"),
    }
    found += [Run(f"{method}, 3 bits", method, cfg) for method, cfg in options.items()]
    found.append(Run("GPTQ, 3 bits, streaming", "GPTQ streaming", GPTQ(bits=3, group=64), streaming=True))
    return (*found, *(_same(named(methods(), name)) for name in OTHERS))


def _same(method: Method) -> Run:
    return Run(method.name, method.family, method.cfg, fisher=method.fisher, inputs=method.inputs)
