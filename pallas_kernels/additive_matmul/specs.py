"""Named products at real shapes: the layouts that AQLM publishes models in."""

import dataclasses
from collections.abc import Iterator

import jax

from pallas_kernels.additive_matmul.layout import AdditiveLayout
from pallas_kernels.specs import layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveSpec:
    """A product of ``m`` rows of activations with one layer."""

    title: str
    m: int
    layout: AdditiveLayout
    dtype: str = "bfloat16"
    books_dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Layer, codebooks and rows in one word."""
        lay = self.layout
        kind = f"{lay.books}x{lay.bits}g{lay.group}"
        stored = "" if self.books_dtype == self.dtype else f"-{self.books_dtype}"
        return f"{self.title}-{kind}{stored}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of x, codes, codebooks and scale."""
        lay = self.layout
        return (
            jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype),
            jax.ShapeDtypeStruct(lay.codes_shape, lay.code_dtype),
            jax.ShapeDtypeStruct(lay.books_shape, self.books_dtype),
            jax.ShapeDtypeStruct((lay.cols,), self.books_dtype),
        )


def spec(
    title: str,
    m: int,
    *,
    books: int = 2,
    entries: int = 256,
    group: int = 8,
    dtype: str = "bfloat16",
    books_dtype: str | None = None,
) -> AdditiveSpec:
    """A spec of a named layer, with codebooks in the dtype of the activations unless another is named."""
    at = layer(title)
    layout = AdditiveLayout(books=books, entries=entries, group=group, rows=at.inputs, cols=at.outputs)
    return AdditiveSpec(title=title, m=m, layout=layout, dtype=dtype, books_dtype=books_dtype or dtype)


def _all() -> Iterator[AdditiveSpec]:
    for title in ("Llama-3-8B/q", "Llama-3-8B/gate", "Qwen3-0.6B/down", "SmolLM2-135M/gate"):
        for m in (1, 16, 512):
            yield spec(title, m)
    for title in ("Llama-3-8B/q", "Llama-3-8B/down"):
        for m in (1, 16, 512):
            yield spec(title, m, books=1, entries=65536)
    for m in (1, 16):
        yield spec("Llama-3-8B/q", m, books=1, entries=65536, group=16)
    yield spec("Llama-3-8B/q", 64)
    yield spec("Llama-3-8B/q", 1, books=1)
    yield spec("Llama-3-8B/q", 1, books=2, group=4)
    for m in (1, 512):
        yield spec("Llama-3-8B/q", m, books=4)
    yield spec("Llama-3-8B/q", 4, books_dtype="float16")
    yield spec("Llama-3-8B/q", 1, dtype="float16")
    yield spec("Llama-3-8B/q", 1, dtype="float32")
    yield spec("Llama-3-8B/q", 128, dtype="float32", books_dtype="float16")


SPECS: tuple[AdditiveSpec, ...] = tuple(_all())
