"""Size of a model by component, before at 16 bits and after as stored."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from compressjax.checkpoint import ModelSource
from compressjax.ops import nbits, size
from compressjax.select import weights

_ORDER = ("Embedding", "Attention", "MLP", "Norms and biases", "Output head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A part of a model.

    Attributes:
      name: "Attention".
      parameters: weights it stands for.
      bits: what it takes as stored.
    """

    name: str
    parameters: int
    bits: int

    @property
    def dense_bits(self) -> int:
        """What it takes at 16 bits per weight."""
        return 16 * self.parameters


def component_sizes(source: ModelSource) -> tuple[Component, ...]:
    """Sizes of a model on disk, read block by block.

    Raises:
      ValueError: a weight is damaged.
    """
    totals: dict[str, tuple[int, int]] = {}
    for path, weight in _weights(source):
        name = _component(path)
        parameters, bits = totals.get(name, (0, 0))
        totals[name] = parameters + size(weight), bits + nbits(weight)
    return tuple(
        Component(name=name, parameters=totals[name][0], bits=totals[name][1]) for name in _ORDER if name in totals
    )


def _weights(source: ModelSource) -> Iterator[tuple[str, Any]]:
    yield from weights(source.rest()).items()
    for index in range(source.num_blocks):
        yield from weights(source.block(index)).items()


def _component(path: str) -> str:
    if path.rpartition("/")[2] in ("scale", "bias"):
        return "Norms and biases"
    return {"embed": "Embedding", "head": "Output head", "attn": "Attention"}.get(path.partition("/")[0], "MLP")
