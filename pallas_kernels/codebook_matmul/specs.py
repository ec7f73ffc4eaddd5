"""Named products at real shapes: tables of 8 and 16 levels per output, as k-means quantisers make them."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels.codebook_matmul.layout import CodebookLayout
from pallas_kernels.specs import layer, pack_tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookSpec:
    """A product of ``m`` rows of activations with one layer."""

    title: str
    m: int
    layout: CodebookLayout
    dtype: str = "bfloat16"
    levels_dtype: str = "float16"

    @property
    def name(self) -> str:
        """Layer, size of the tables and rows in one word."""
        return f"{self.title}-l{self.layout.levels}g{self.layout.group}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of x, codes and levels."""
        lay = self.layout
        return (
            jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype),
            jax.ShapeDtypeStruct((lay.packing.tiles * lay.packing.words, lay.cols), jnp.uint32),
            jax.ShapeDtypeStruct((lay.groups, lay.levels, lay.cols), self.levels_dtype),
        )


def spec(title: str, m: int, *, levels: int = 16, group: int | None = None) -> CodebookSpec:
    """A spec of a named layer; one table per output when no group is given."""
    at = layer(title)
    layout = CodebookLayout(
        levels=levels, group=group or at.inputs, tile=pack_tile(at.inputs), rows=at.inputs, cols=at.outputs
    )
    return CodebookSpec(title=title, m=m, layout=layout)


def _all() -> Iterator[CodebookSpec]:
    for title in ("Llama-3-8B/q", "Llama-3-8B/gate", "Qwen3-0.6B/down", "SmolLM2-135M/gate"):
        for levels in (16, 8):
            for m in (1, 16, 512):
                yield spec(title, m, levels=levels)
    yield spec("Llama-3-8B/q", 1, group=512)


SPECS: tuple[CodebookSpec, ...] = tuple(_all())
