"""What is shared out in each row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from compressjax.factorization import EoRA
from compressjax.quantization import GPTQ
from compressjax.sparsity import GQSA


class Setting(NamedTuple):
    """One row.

    Attributes:
      name: unique, also its name on the command line.
      network: "bytes" or "smollm2".
      levels: configs from the smallest to the largest.
      bits: budget per weight.
    """

    name: str
    network: str
    levels: Sequence[Any]
    bits: float


_TWO, _THREE, _FOUR = (GPTQ(bits=bits, group=64) for bits in (2, 3, 4))
# Rounded, rounded and repaired by a path, and half of the groups dropped with the rest in 4 bits.
_MIXED = (
    _TWO,
    EoRA(base=_TWO, rank=2),
    GQSA(sparsity=0.5),
    _THREE,
    EoRA(base=_THREE, rank=2),
    _FOUR,
)


def settings() -> tuple[Setting, ...]:
    """All rows in order: budgets between two levels and at about one, on two networks."""
    bits = (_TWO, _THREE, _FOUR)
    return (
        *(Setting(f"bytes, GPTQ, {size} bits", "bytes", bits, size) for size in (2.8, 3.3)),
        *(Setting(f"bytes, mixed families, {size} bits", "bytes", _MIXED, size) for size in (2.8, 3.3)),
        *(Setting(f"SmolLM2, GPTQ, {size} bits", "smollm2", bits, size) for size in (2.8, 3.3)),
    )
