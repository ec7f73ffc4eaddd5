"""Named products at real shapes: stacks of 8 blocks of rank 16 as BitStack makes them, and single 1-bit blocks."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.sign_lowrank_matmul.layout import SignBlocks, SignLayout
from pallas_kernels.specs import layer, pack_tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignSpec:
    """A product of ``m`` rows of activations with a stack of ``blocks`` for one layer."""

    title: str
    m: int
    blocks: int
    layout: SignLayout
    dtype: str = "bfloat16"
    factor_dtype: str = "float16"

    @property
    def name(self) -> str:
        """Layer, blocks, rank and rows in one word."""
        return f"{self.title}-{self.blocks}x-r{self.layout.rank}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, SignBlocks]:
        """Shapes of x and the blocks."""
        lay, n = self.layout, self.blocks
        shapes = (
            ((n, lay.packing.tiles * lay.packing.words, lay.cols), jnp.uint32),
            ((n, lay.rows, lay.rank), self.factor_dtype),
            ((n, lay.rank, lay.cols), self.factor_dtype),
            ((n,), jnp.int32),
            ((), jnp.int32),
        )
        blocks = SignBlocks(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))  # pyright: ignore[reportArgumentType]
        return jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype), blocks


def spec(title: str, m: int, *, blocks: int = 8, rank: int = 16) -> SignSpec:
    """A spec of a named layer."""
    at = layer(title)
    layout = SignLayout(rank=rank, tile=pack_tile(at.inputs), rows=at.inputs, cols=at.outputs)
    return SignSpec(title=title, m=m, blocks=blocks, layout=layout)


SPECS: tuple[SignSpec, ...] = (
    *(spec(title, m) for title in ("Llama-3-8B/q", "Qwen3-0.6B/gate") for m in (1, 16, 512)),
    *(spec("SmolLM2-135M/gate", m, rank=4) for m in (1, 16)),
    *(spec("Llama-3-8B/q", m, blocks=1, rank=1) for m in (512, 1)),
)
