"""Named flushes at real sizes: rings of all layers of two language models, as KIVI, KV4, RoundKV and GEAR fill them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.kv_append.layout import AppendLayout
from pallas_kernels.kv_attention.layout import Axis, Codes, Side
from pallas_kernels.specs import pack_tile

_SIZES = {"Llama-3-8B": (32, 8, 128), "SmolLM2-135M": (30, 3, 64), "SmolLM2-135M-MLA": (30, 1, 224)}
"""Layers, key heads and width, from the published configurations; the last as TransMLA converts it, one latent."""
BLOCKS = 32
"""Blocks that a cache has room for: of them one is written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppendSpec:
    """The rings of keys, or of values, of all layers, which are flushed together.

    Attributes:
      model: names the sizes.
      batch: texts.
      layout: of a block.
      dtype: of the ring.
      masked: a byte a token says whether it widens ranges.
    """

    model: str
    batch: int
    layout: AppendLayout
    dtype: str = "bfloat16"
    masked: bool = True

    @property
    def name(self) -> str:
        """Model, codes, tokens and texts in one word."""
        side = self.layout.side
        kind = f"w{side.bits}g{side.group}-{side.axis}{'-sym' if side.sym else ''}{'-masked' if self.masked else ''}"
        return f"{self.model}/{kind}-n{self.layout.tokens}-b{self.batch}-{self.dtype}"

    def arguments(self) -> tuple[Codes, Any, Any, Any]:
        """Shapes of the cache, the ring, the place and the mask or None; the first two lead with layers."""
        layers, heads, width = _SIZES[self.model]
        lead = (self.batch, heads)

        def array(dtype, *shape) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        words, scales = self.layout.block_shapes()
        scale = array(jnp.float16, layers, BLOCKS, *lead, *scales)
        codes = array(jnp.uint32, layers, BLOCKS, *lead, *words)
        held = Codes(codes, scale, None if self.layout.side.sym else scale)
        keep = array(jnp.uint8, self.batch, self.layout.tokens) if self.masked else None
        return held, array(self.dtype, layers, *lead, self.layout.tokens, width), array(jnp.int32), keep

    @property
    def written(self) -> int:
        """Bytes of the block in the cache."""
        return sum(a.size * a.dtype.itemsize // BLOCKS for a in self.arguments()[0] if a is not None)


def spec(model: str, axis: Axis, *, bits: int, group: int, tokens: int, sym: bool = False, **rest: Any) -> AppendSpec:
    """The ring of a named model."""
    side = Side(width=_SIZES[model][2], bits=bits, group=group, axis=axis, sym=sym)
    layout = AppendLayout(tokens=tokens, tile=pack_tile(tokens), side=side)
    return AppendSpec(model=model, layout=layout, **{"batch": 1, **rest})


SPECS: tuple[AppendSpec, ...] = (
    *(spec("Llama-3-8B", axis, bits=2, group=32, tokens=128) for axis in ("channel", "token")),  # KIVI
    *(spec("Llama-3-8B", axis, bits=4, group=64, tokens=64, batch=4) for axis in ("channel", "token")),  # KV4
    *(spec("Llama-3-8B", axis, bits=2, group=64, tokens=64) for axis in ("channel", "token")),  # GEAR
    spec("Llama-3-8B", "token", bits=8, group=128, tokens=64),  # RoundKV
    spec("Llama-3-8B", "token", bits=3, group=128, tokens=64),
    spec("Llama-3-8B", "channel", bits=4, group=64, tokens=64, sym=True, masked=False),
    spec("Llama-3-8B", "channel", bits=4, group=128, tokens=256, dtype="float32"),
    *(spec("SmolLM2-135M", axis, bits=2, group=32, tokens=128, batch=8) for axis in ("channel", "token")),
    *(spec("SmolLM2-135M", axis, bits=4, group=64, tokens=64) for axis in ("channel", "token")),
    spec("SmolLM2-135M-MLA", "channel", bits=4, group=64, tokens=64, batch=8),
    spec("SmolLM2-135M-MLA", "token", bits=4, group=224, tokens=64, batch=8),
)
