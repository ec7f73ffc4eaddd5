"""Named products at real shapes, inputs permuted and a few blocks at 8 bits, as COMET has them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.specs import layer
from pallas_kernels.w4ax_matmul.layout import W4AxLayout, W4AxWeight


@dataclasses.dataclass(frozen=True, kw_only=True)
class W4AxSpec:
    """A product of ``m`` rows of activations with one layer."""

    title: str
    m: int
    layout: W4AxLayout
    permuted: bool = True
    dtype: str = "bfloat16"
    scale_dtype: str = "float16"

    @property
    def name(self) -> str:
        """Layer, block and rows in one word."""
        order = "" if self.permuted else "-ordered"
        return f"{self.title}-b{self.layout.block}{order}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, W4AxWeight]:
        """Shapes of x and the weight."""
        lay = self.layout
        weight = W4AxWeight(
            jax.ShapeDtypeStruct((lay.blocks * lay.half, lay.cols), jnp.uint8),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((lay.blocks, lay.cols), self.scale_dtype),  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((lay.rows,), jnp.uint16) if self.permuted else None,  # pyright: ignore[reportArgumentType]
            jax.ShapeDtypeStruct((), jnp.int32),  # pyright: ignore[reportArgumentType]
        )
        return jax.ShapeDtypeStruct((self.m, lay.rows), self.dtype), weight


def spec(title: str, m: int, *, block: int | None = None, **fields: Any) -> W4AxSpec:
    """A spec of a named layer; blocks of 128, or of 64 where those do not divide the inputs."""
    at = layer(title)
    block = block or (128 if at.inputs % 128 == 0 else 64)
    layout = W4AxLayout(block=block, rows=at.inputs, cols=at.outputs)
    return W4AxSpec(title=title, m=m, layout=layout, **fields)


SPECS: tuple[W4AxSpec, ...] = (
    *(
        spec(title, m)
        for title in ("Llama-3-8B/q", "Llama-3-8B/kv", "Llama-3-8B/gate", "Llama-3-8B/down")
        for m in (1, 16, 512)
    ),
    *(spec(title, m) for title in ("Qwen3-0.6B/kv", "Qwen3-0.6B/down") for m in (1, 16, 512)),
    *(spec(title, m) for title in ("SmolLM2-135M/kv", "SmolLM2-135M/gate", "SmolLM2-135M/down") for m in (1, 16, 512)),
    spec("Llama-3-8B/q", 8),
    spec("Llama-3-8B/q", 64),
    spec("Llama-3-8B/q", 1, permuted=False, dtype="float16"),
    spec("Llama-3-8B/q", 512, permuted=False, scale_dtype="float32"),
    spec("Llama-3-8B/q", 16, dtype="float32"),
    *(spec("Llama-3-8B/q", m, block=256) for m in (1, 16, 512)),
)
