"""What is fixed about rotated rows, their arithmetic, and the check that arrays fit.

    z = x H,    H = blockwise Sylvester / sqrt(B),    s = clip * sqrt(mean z^2) + 1e-8,    unit = 2 s / (2^b - 1)
    level = clip(floor(z / unit), -2^(b-1), 2^(b-1) - 1),    z ~ (level + 1/2) unit

A code is ``level + 2^(b-1)``. The rotation keeps lengths, so the root mean square is that of x. Source: QuEST, Panferov
et al., 2025, arXiv 2502.05003, whose ``clip`` is the one with the least error for normal z.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import Packing
from pallas_kernels.quantize_pack.layout import FLOATS

BLOCKS = (16, 32, 64, 128, 256)
FLOOR = 1e-8
_OP = "hadamard"


class Rotated(NamedTuple):
    """Rows in few bits, in the rotated basis.

    Attributes:
      words: uint32 ``[..., channels * bits / 32]``, codes packed along the row as :mod:`pallas_kernels.packing` says.
      unit: float32 ``[...]``, distance of two levels.
      level_sums: int32 ``[...]``, sum of the levels, which a product of two such rows needs for their halves.
    """

    words: jax.Array
    unit: jax.Array
    level_sums: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class HadamardLayout:
    """How rows are rotated, rounded and packed.

    Attributes:
      bits: 1, 2, 4 or 8.
      block: channels that are rotated together, a power of two from 16 to 256.
      tile: channels packed together, 32, 64, 128 or 256.
      clip: where the outermost levels lie, in root mean squares.
    """

    bits: int
    block: int
    tile: int
    clip: float

    def __post_init__(self):
        if self.bits not in (1, 2, 4, 8):
            raise ValueError(f"{_OP}: bits must be 1, 2, 4 or 8, got {self.bits}")
        Packing(self.bits, self.tile, self.tile).check(_OP)
        check_block(self.block)
        if not self.clip > 0:
            raise ValueError(f"{_OP}: clip must be above 0, got {self.clip}")

    @property
    def packing(self) -> Packing:
        """How the codes of one tile are packed."""
        return Packing(self.bits, self.tile, self.tile)

    @property
    def half(self) -> int:
        """Code of level 0."""
        return 2 ** (self.bits - 1)

    def unit_of(self, mean_square: jax.Array) -> jax.Array:
        """Distance of two levels, float32."""
        scale = jnp.sqrt(mean_square) * jnp.float32(self.clip) + jnp.float32(FLOOR)
        return scale * jnp.float32(2 / (2**self.bits - 1))

    def levels(self, z: jax.Array, unit: jax.Array) -> jax.Array:
        """Levels as float32."""
        level = jnp.floor(z / unit)
        return jnp.minimum(jnp.maximum(level, jnp.float32(-self.half)), jnp.float32(self.half - 1))


def check_block(block: int) -> None:
    """Raises ValueError for a block that is not rotated."""
    if block not in BLOCKS:
        raise ValueError(f"{_OP}: block must be one of {BLOCKS}, got {block}")


def check_rows(x: jax.Array, block: int, tile: int) -> None:
    """Raises TypeError or ValueError unless the rows of ``x`` are whole blocks and whole tiles."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] % max(block, tile) or not x.shape[-1]:
        raise ValueError(
            f"{_OP}: rows of x must be whole blocks of {block}"
            + (f" and tiles of {tile}" if tile > 1 else "")
            + f", got shape {x.shape}"
        )
    if x.size >= 2**31:
        raise ValueError(f"{_OP}: x must have fewer than 2**31 values, got shape {x.shape}")


def sylvester(size: int) -> np.ndarray:
    """The Hadamard matrix of ones and minus ones, ``H[i, j] = (-1)^popcount(i & j)``, float32."""
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
