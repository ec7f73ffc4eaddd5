"""Named products at real shapes: what tests, proofs and timings of the packed product all run over."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout, ZeroKind
from pallas_kernels.specs import LAYERS, layer, pack_tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineSpec:
    """A product of ``m`` rows of activations with one layer."""

    title: str
    m: int
    layout: AffineLayout
    dtype: str = "bfloat16"
    scale_dtype: str = "float16"

    @property
    def name(self) -> str:
        """Layer, kind of weight and rows in one word."""
        kind = f"w{self.layout.bits}g{self.layout.group}-{self.layout.zero_kind}"
        return f"{self.title}-{kind}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct | None, ...]:
        """Shapes of x, codes, scale and zero."""
        lay = self.layout
        zero = {
            "none": None,
            "real": jax.ShapeDtypeStruct((lay.groups, lay.cols), self.scale_dtype),
            "int": jax.ShapeDtypeStruct((lay.groups, lay.zero_packing.tiles * lay.zero_packing.words), jnp.uint32),
        }
        return (
            jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype),
            jax.ShapeDtypeStruct((lay.packing.tiles * lay.packing.words, lay.cols), jnp.uint32),
            jax.ShapeDtypeStruct((lay.groups, lay.cols), self.scale_dtype),
            zero[lay.zero_kind],
        )


def spec(
    title: str, m: int, *, bits: int = 4, group: int = 128, zero_kind: ZeroKind = "int", dtype: str = "bfloat16"
) -> AffineSpec:
    """A spec of a named layer; groups of 64 where 128 does not divide the inputs."""
    at = layer(title)
    group = group if at.inputs % group == 0 else 64
    layout = AffineLayout(
        bits=bits, group=group, tile=pack_tile(at.inputs), rows=at.inputs, cols=at.outputs, zero_kind=zero_kind
    )
    return AffineSpec(title=title, m=m, layout=layout, dtype=dtype)


def _all() -> Iterator[AffineSpec]:
    for at in LAYERS:  # every layer at 4 bits, decoding and prefilling
        for m in (1, 16, 512):
            yield spec(at.title, m)
    for bits in (2, 3, 8):
        for title in ("Llama-3-8B/gate", "SmolLM2-135M/down"):
            for m in (1, 16, 512):
                yield spec(title, m, bits=bits)
    for zero_kind in ("real", "none"):
        for m in (1, 512):
            yield spec("Llama-3-8B/q", m, zero_kind=zero_kind)
    for dtype in ("float16", "float32"):
        for m in (1, 512):
            yield spec("Llama-3-8B/q", m, dtype=dtype)
    for m in (4, 8):
        yield spec("Llama-3-8B/q", m)
    yield spec("Llama-3-8B/down", 1, group=32)


SPECS: tuple[AffineSpec, ...] = tuple(_all())
