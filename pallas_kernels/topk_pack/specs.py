"""Named vectors at real lengths: gradients of layers, one per cent of every chunk."""

import dataclasses

import jax

from pallas_kernels.specs import layer
from pallas_kernels.topk_pack.layout import TopKLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKSpec:
    """The gradient of a layer."""

    title: str
    size: int
    layout: TopKLayout
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Layer, chunk and entries in one word."""
        left = "-residual" if self.layout.residual else ""
        return f"{self.title}-gradient-{self.layout.k}of{self.layout.chunk}-{self.dtype}{left}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shape of x."""
        return (jax.ShapeDtypeStruct((self.size,), self.dtype),)


def spec(
    title: str, *, chunk: int = 4096, density: float = 0.01, residual: bool = False, dtype: str = "float32"
) -> TopKSpec:
    """A spec of a named layer."""
    at = layer(title)
    layout = TopKLayout(chunk=chunk, k=max(1, round(density * chunk)), residual=residual)
    return TopKSpec(title=title, size=at.inputs * at.outputs, layout=layout, dtype=dtype)


SPECS: tuple[TopKSpec, ...] = (
    *(spec("Llama-3-8B/gate", residual=residual) for residual in (False, True)),
    spec("Llama-3-8B/gate", dtype="bfloat16"),
    spec("Llama-3-8B/gate", chunk=8192),
    spec("Llama-3-8B/gate", chunk=512, density=0.1),
    *(spec("SmolLM2-135M/q", residual=residual) for residual in (False, True)),
)
