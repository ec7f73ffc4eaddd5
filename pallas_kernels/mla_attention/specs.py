"""Named caches of latents at real sizes: of DeepSeek-V2 and -V3, and of SmolLM2-135M converted by TransMLA."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import Axis, Codes, Side
from pallas_kernels.mla_attention.layout import Latents, MLALayout
from pallas_kernels.specs import pack_tile

_SIZES = {"DeepSeek-V3": (128, 512, 64), "DeepSeek-V2-Lite": (16, 512, 64), "SmolLM2-135M": (9, 192, 32)}
"""Query heads, latent and rotary widths: from the published configurations, and a conversion this library measures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLASpec:
    """One layer's attention to a number of equal blocks.

    Attributes:
      model: names the sizes.
      batch, blocks: texts, and blocks of tokens.
      layout: of a block.
      masked: a byte a token says whether it is seen.
      dtype: of queries, and of rows kept as floats.
    """

    model: str
    batch: int
    blocks: int
    layout: MLALayout
    masked: bool = False
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Model, codes, tokens and texts in one word."""
        lay, side = self.layout, self.layout.side
        kind = "float"
        if side is not None:
            kind = f"w{side.bits}g{side.group}{'' if side.axis == 'channel' else '-token'}"
        tokens = f"{self.blocks}x{lay.tokens}" if self.blocks > 1 else str(lay.tokens)
        return f"{self.model}/{kind}{'-masked' if self.masked else ''}-n{tokens}-b{self.batch}-{self.dtype}"

    def arguments(self) -> tuple[Any, Latents, Any, Any]:
        """Shapes of q, latents, start and stop."""
        heads, lay, lead = _SIZES[self.model][0], self.layout, (self.blocks, self.batch)

        def array(dtype, *shape) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        if lay.side is None:
            latents: Latents = array(self.dtype, *lead, lay.tokens, lay.width)
        else:
            scale = array("float16", *lead, *lay.scale_shape)
            words = lay.packing.tiles * lay.packing.words
            latents = Codes(array(jnp.uint32, *lead, words, lay.width), scale, None if lay.side.sym else scale)
        edge = array(jnp.int32, self.batch)
        return array(self.dtype, self.batch, heads, lay.width), latents, edge, edge

    def seen(self) -> Any:
        """Shape of the mask, or None."""
        shape = (self.blocks, self.batch, self.layout.tokens)
        return jax.ShapeDtypeStruct(shape, jnp.uint8) if self.masked else None


def spec(
    model: str,
    tokens: int,
    *,
    bits: int | None = None,
    group: int = 32,
    axis: Axis = "channel",
    blocks: int = 1,
    batch: int = 1,
    masked: bool = False,
    dtype: str = "bfloat16",
) -> MLASpec:
    """A cache of a named model, kept as floats or in ``bits``."""
    _, rank, rope = _SIZES[model]
    side = None if bits is None else Side(width=rank + rope, bits=bits, group=group, axis=axis)
    tile = 32 if side is None else pack_tile(tokens)
    layout = MLALayout(rank=rank, rope=rope, tokens=tokens, side=side, tile=tile)
    return MLASpec(model=model, batch=batch, blocks=blocks, layout=layout, masked=masked, dtype=dtype)


SPECS: tuple[MLASpec, ...] = (
    spec("DeepSeek-V3", 4096, batch=64),
    spec("DeepSeek-V3", 4096, batch=64, dtype="float16"),
    spec("DeepSeek-V3", 131072, batch=8),
    spec("DeepSeek-V3", 8192),
    spec("DeepSeek-V3", 64, blocks=64, batch=64, masked=True),
    spec("DeepSeek-V3", 64, blocks=64, batch=4, masked=True),
    spec("DeepSeek-V3", 4096, bits=3, batch=64, masked=True),
    spec("DeepSeek-V2-Lite", 8192, batch=32),
    spec("DeepSeek-V2-Lite", 8192, bits=4, batch=64),
    spec("DeepSeek-V2-Lite", 8192, bits=8, batch=32),
    spec("DeepSeek-V3", 4096, bits=4, batch=64),
    spec("DeepSeek-V3", 64, bits=4, group=64, blocks=64, batch=64, masked=True),
    spec("SmolLM2-135M", 4096, batch=64),
    spec("SmolLM2-135M", 4096, batch=64, dtype="float32"),
    spec("SmolLM2-135M", 4096, bits=4, batch=64, masked=True),
    spec("SmolLM2-135M", 4096, bits=8, batch=64, masked=True),
    spec("SmolLM2-135M", 64, bits=4, group=224, axis="token", blocks=32, batch=128, masked=True),
)
