"""Block sizes of products with packed weights."""

import dataclasses
import math

import jax.numpy as jnp

from pallas_kernels.packing import Packing

_DECODE_ROWS = 16  # the fewest rows a tensor-core product takes
_MULTIPROCESSORS = 132
# Partial results are stored and read once each; more splits than this share of the weights' bytes cost more than the
# idle multiprocessors they would fill.
_PARTIAL_SHARE = 0.035


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductConfig:
    """How the product is cut.

    Attributes:
      block_m, block_n: rows and columns of the result that one program makes, powers of two from 16.
      tiles: packed tiles of the matrix that one step of its loop reads, a power of two.
      splits: programs that share the depth of one block of the result.
      warps, stages: warps of a program, and loads in flight.
    """

    block_m: int
    block_n: int
    tiles: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self):
        for name in ("block_m", "block_n"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"ProductConfig.{name} must be a power of two from 16, got {value}")
        if self.tiles < 1 or self.tiles & (self.tiles - 1):
            raise ValueError(f"ProductConfig.tiles must be a power of two, got {self.tiles}")
        if self.splits < 1 or self.stages < 1:
            raise ValueError(f"ProductConfig.splits and stages must be at least 1, got {self.splits}, {self.stages}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"ProductConfig.warps must be 1, 2, 4 or 8, got {self.warps}")


def least_tiles(run: int) -> int:
    """Fewest packed tiles whose fields, of ``run`` rows each, are deep enough for a tensor-core product."""
    return max(1, 16 // run)


def product_config(m: int, packing: Packing, cols: int, dtype: jnp.dtype) -> ProductConfig:
    """Block sizes by rule, for ``m`` rows of activations in ``dtype`` and ``cols`` columns of the matrix."""
    tiles = least_tiles(packing.run)
    wide = dtype == jnp.float32
    if m > 64:  # three TF32 products of float32 take the registers of a block twice as large
        block_n = 32 if wide else 64
        return ProductConfig(block_m=64, block_n=block_n, tiles=tiles, splits=1, warps=4, stages=1 if wide else 2)
    block_m = max(_DECODE_ROWS, 1 << math.ceil(math.log2(m)))
    # Many rows of activations want wide blocks, for each program reads them all again.
    block_n = 32 if m <= 8 else 64
    while block_n > 16 and math.ceil(cols / block_n) < _MULTIPROCESSORS // 4:
        block_n //= 2
    programs = math.ceil(cols / block_n) * math.ceil(m / block_m)
    chunks = math.ceil(packing.tiles / tiles)
    affordable = int(_PARTIAL_SHARE * packing.rows * packing.bits / 8 / (8 * m))
    splits = max(1, min(_MULTIPROCESSORS // programs, affordable, chunks // 2))
    warps = 2 if block_n <= 32 and block_m <= 16 else 4
    return ProductConfig(
        block_m=block_m, block_n=block_n, tiles=tiles, splits=splits, warps=warps, stages=2 if wide else 4
    )
