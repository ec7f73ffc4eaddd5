"""Named arrays at real shapes: gradients of layers, flat, and caches of keys and values."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.quantize_pack.layout import Along, Kind, Packed, PackLayout
from pallas_kernels.specs import layer, pack_tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSpec:
    """An array to round."""

    title: str
    shape: tuple[int, ...]
    layout: PackLayout
    dtype: str = "float32"
    random: bool = False

    @property
    def name(self) -> str:
        """Array, layout and rounding in one word."""
        lay = self.layout
        kind = f"w{lay.bits}b{lay.block}-{lay.kind}-{lay.along}"
        return f"{self.title}-{kind}-{self.dtype}{'-random' if self.random else ''}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of x, and of the key where there is one."""
        key = (jax.ShapeDtypeStruct((2,), jnp.uint32),) if self.random else ()
        return (jax.ShapeDtypeStruct(self.shape, self.dtype), *key)

    def packed(self) -> Packed:
        """Shapes of the packed array."""
        words, scales = self.layout.shapes(self.shape)
        scale = jax.ShapeDtypeStruct(scales, self.layout.scale_dtype)
        low = scale if self.layout.kind == "minmax" else None
        return Packed(jax.ShapeDtypeStruct(words, jnp.uint32), scale, low)  # pyright: ignore[reportArgumentType]


def gradient(title: str, *, bits: int, block: int = 512, kind: Kind = "minmax", random: bool = False) -> PackSpec:
    """The gradient of a layer in float32, as compressors of ``compressjax.distributed`` cut it."""
    at = layer(title)
    size = at.inputs * at.outputs
    layout = PackLayout(bits=bits, block=block, tile=pack_tile(math.ceil(size / block) * block), kind=kind)
    return PackSpec(title=f"{title}-gradient", shape=(size,), layout=layout, random=random)


def cache(
    title: str, heads: int, tokens: int, *, bits: int, along: Along, block: int = 32, kind: Kind = "minmax"
) -> PackSpec:
    """Keys ("rows") or values ("cols") of a model's layer, batch 1, heads of 128 channels, scales in float16."""
    layout = PackLayout(bits=bits, block=block, tile=pack_tile(tokens), kind=kind, along=along, scale_dtype="float16")
    return PackSpec(title=f"{title}-cache{tokens}", shape=(heads, tokens, 128), layout=layout, dtype="bfloat16")


SPECS: tuple[PackSpec, ...] = (
    *(gradient("Llama-3-8B/gate", bits=bits, random=random) for bits in (2, 4, 8) for random in (False, True)),
    gradient("Llama-3-8B/gate", bits=8, kind="norm", random=True),
    gradient("Llama-3-8B/gate", bits=4, kind="absmax", block=4096),
    *(gradient("SmolLM2-135M/gate", bits=bits, random=True) for bits in (4, 8)),
    *(cache("Llama-3-8B", 8, 4096, bits=bits, along=along) for bits in (2, 4) for along in ("rows", "cols")),
    cache("Llama-3-8B", 8, 4096, bits=8, along="cols", block=128, kind="absmax"),
    cache("Qwen3-0.6B", 8, 1024, bits=2, along="rows", block=128),
)
