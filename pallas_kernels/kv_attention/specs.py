"""Named caches at real sizes: prompts and later blocks of three language models, as KIVI and GEAR hold them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import Axis, Codes, Fit, KVLayout, Past, Side
from pallas_kernels.specs import pack_tile

_HEADS = {"Llama-3-8B": (8, 4, 128), "Qwen3-0.6B": (8, 2, 128), "SmolLM2-135M": (3, 3, 64)}
"""Key heads, query heads of each, and width, from the published configurations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """One layer's attention to a number of equal blocks.

    Attributes:
      model: names the heads.
      batch, blocks: texts, and blocks of tokens.
      layout: of a block.
      rank: of the low-rank parts; 0 for none.
      masked: a byte a token says whether it is seen.
      dtype: of queries.
    """

    model: str
    batch: int
    blocks: int
    layout: KVLayout
    rank: int = 0
    masked: bool = False
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Model, codes, tokens and texts in one word."""
        lay = self.layout
        kind = f"kv{lay.key.bits}g{lay.key.group}{'' if lay.key.axis == 'channel' else '-token'}"
        rank = f"-r{self.rank}" if self.rank else ""
        masked = "-masked" if self.masked else ""
        tokens = f"{self.blocks}x{lay.tokens}" if self.blocks > 1 else str(lay.tokens)
        return f"{self.model}/{kind}{rank}{masked}-n{tokens}-b{self.batch}-{self.dtype}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, Past, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of q, past, start and stop."""
        heads, groups, width = _HEADS[self.model]
        lay, lead = self.layout, (self.blocks, self.batch, heads)

        def array(dtype, *shape) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        def held(side):
            packing = lay.packing(side)
            codes = array(jnp.uint32, *lead, packing.tiles * packing.words, side.width)
            scale = array("float16", *lead, *lay.scale_shape(side))
            return Codes(codes, scale, None if side.sym else scale)

        fit = None
        if self.rank:
            fit = Fit(array("float16", *lead, lay.tokens, self.rank), array("float16", *lead, width, self.rank))
        edge = array(jnp.int32, self.batch)
        q = array(self.dtype, self.batch, heads, groups, width)
        return q, Past(held(lay.key), held(lay.value), fit, fit), edge, edge

    def seen(self) -> jax.ShapeDtypeStruct | None:
        """Shape of the mask."""
        shape = (self.blocks, self.batch, self.layout.tokens)
        return jax.ShapeDtypeStruct(shape, jnp.uint8) if self.masked else None


def spec(
    model: str,
    tokens: int,
    *,
    bits: int = 2,
    group: int = 32,
    blocks: int = 1,
    batch: int = 1,
    k_axis: Axis = "channel",
    rank: int = 0,
    masked: bool = False,
    dtype: str = "bfloat16",
) -> AttentionSpec:
    """A cache of a named model: keys per channel unless told, values per token."""
    width = _HEADS[model][2]
    key = Side(width=width, bits=bits, group=group, axis=k_axis)
    value = Side(width=width, bits=bits, group=group, axis="token")
    layout = KVLayout(tokens=tokens, tile=pack_tile(tokens), key=key, value=value)
    return AttentionSpec(model=model, batch=batch, blocks=blocks, layout=layout, rank=rank, masked=masked, dtype=dtype)


SPECS: tuple[AttentionSpec, ...] = (
    *(spec("Llama-3-8B", 8192, bits=bits) for bits in (2, 4, 8)),
    *(spec("Llama-3-8B", 4096, bits=bits, batch=16) for bits in (2, 4)),
    spec("Llama-3-8B", 128, blocks=64, masked=True),  # chunks of KIVI
    spec("Llama-3-8B", 8192, bits=2, group=64, rank=4),  # a prompt of GEAR
    spec("Llama-3-8B", 64, bits=2, group=64, blocks=64, batch=4, rank=2, masked=True),  # and its chunks
    spec("Llama-3-8B", 64, bits=4, group=64, blocks=64, batch=4),  # chunks of KV4
    spec("Llama-3-8B", 8192, bits=4, group=128, k_axis="token"),
    *(spec("Qwen3-0.6B", 8192, bits=bits) for bits in (2, 4)),
    *(spec("SmolLM2-135M", 2048, bits=bits, batch=8, masked=True) for bits in (2, 4, 8)),
    spec("SmolLM2-135M", 2048, bits=4, dtype="float32"),
)
