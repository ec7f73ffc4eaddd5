"""Named rows at real shapes: activations and weights of layers, rotated alone and in few bits."""

import dataclasses

import jax

from pallas_kernels.hadamard.layout import HadamardLayout
from pallas_kernels.specs import layer, pack_tile

# Where the outermost levels lie that give normal numbers the least squared error, by bits (arXiv 2502.05003).
_CLIP = {1: 0.7978845608028654, 2: 1.4935346200015913, 4: 2.513930578568423, 8: 3.884938678807525}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HadamardSpec:
    """``m`` rows of the inputs of a layer; without a layout the rotation alone."""

    title: str
    m: int
    channels: int
    block: int
    layout: HadamardLayout | None
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """Layer, width, block and rows in one word."""
        kind = "rotate" if self.layout is None else f"w{self.layout.bits}"
        return f"{self.title}-{kind}b{self.block}-{self.dtype}-m{self.m}"

    def arguments(self) -> tuple[jax.ShapeDtypeStruct]:
        """Shape of x."""
        return (jax.ShapeDtypeStruct((self.m, self.channels), self.dtype),)


def spec(title: str, m: int, bits: int | None, dtype: str = "bfloat16") -> HadamardSpec:
    """A spec of a named layer; blocks of 128, or of 64 where those do not divide the inputs."""
    channels = layer(title).inputs
    block = 128 if channels % 128 == 0 else 64
    layout = None
    if bits is not None:
        layout = HadamardLayout(bits=bits, block=block, tile=pack_tile(channels), clip=_CLIP[bits])
    return HadamardSpec(title=title, m=m, channels=channels, block=block, layout=layout, dtype=dtype)


SPECS: tuple[HadamardSpec, ...] = (
    *(spec("Llama-3-8B/q", m, bits) for bits in (4, 8) for m in (1, 16, 512)),
    *(spec("Llama-3-8B/q", 4096, bits) for bits in (1, 2, 4)),
    spec("Llama-3-8B/q", 4096, 4, "float32"),
    spec("Llama-3-8B/down", 512, 4),
    *(spec("SmolLM2-135M/gate", m, 4) for m in (1, 512)),
    *(spec("Llama-3-8B/q", m, None) for m in (1, 512, 4096)),
    spec("SmolLM2-135M/gate", 512, None),
    spec("Llama-3-8B/q", 512, None, "float32"),
)
