"""Block sizes of the product: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses
import math

import jax.numpy as jnp

from pallas_kernels.additive_matmul.layout import AdditiveLayout
from pallas_kernels.backends import tuning

LANES = 4  # threads that hold the depth of one column of a tensor-core operand; each takes one group
_MULTIPROCESSORS = 132
_COLUMNS = 8  # of one tensor-core product, the least a warp takes
_SECTOR = 32  # bytes that device memory gives at once
# Partial results are stored and read once each; more splits than this share of the codes' bytes cost more than the
# idle multiprocessors they would fill.
_PARTIAL_SHARE = 0.035


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveConfig:
    """How the product is cut.

    Attributes:
      block_m, block_n: rows and columns of the result that one program makes, powers of two from 16.
      quads: fours of groups that one step of its loop takes, a power of two.
      splits: programs that share the depth of one block of the result.
      warps: warps of a program.
    """

    block_m: int
    block_n: int
    quads: int
    splits: int
    warps: int

    def __post_init__(self):
        for name, least in (("block_m", 16), ("block_n", 16), ("quads", 1)):
            value = getattr(self, name)
            if value < least or value & (value - 1):
                raise ValueError(f"AdditiveConfig.{name} must be a power of two from {least}, got {value}")
        if self.splits < 1:
            raise ValueError(f"AdditiveConfig.splits must be at least 1, got {self.splits}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"AdditiveConfig.warps must be 1, 2, 4 or 8, got {self.warps}")


def tuning_key(m: int, layout: AdditiveLayout, dtype: jnp.dtype) -> str:
    """Names a product in the file of measured configs."""
    return f"{m}x{layout.rows}x{layout.cols}/{layout.books}x{layout.entries}-g{layout.group}/{dtype.name}"


def choose_config(
    m: int, layout: AdditiveLayout, dtype: jnp.dtype, given: AdditiveConfig | None = None
) -> AdditiveConfig:
    """The config of a product with ``m`` rows of activations in ``dtype``."""
    if given is not None:
        return given
    measured = tuning.measured("additive_matmul", tuning_key(m, layout, dtype), AdditiveConfig)
    if measured is not None:
        return measured
    # float32 vectors take twice the registers, and three TF32 products of them as many again.
    shrink = 2 if dtype == jnp.float32 else 1
    if m > 16:
        return _tall(m, layout, shrink)
    quads = max(1, 32 // layout.group // shrink)
    word = layout.books * layout.bits // 8
    block_n = 32
    if math.ceil(layout.cols / block_n) < _MULTIPROCESSORS // 2 and block_n // 2 * word >= _SECTOR:
        block_n //= 2
    programs = math.ceil(layout.cols / block_n)
    steps = math.ceil(layout.groups / (LANES * quads))
    affordable = int(_PARTIAL_SHARE * layout.groups * word / (8 * m))
    splits = max(1, min(4 * _MULTIPROCESSORS // programs, affordable, steps // 2))
    return AdditiveConfig(block_m=16, block_n=block_n, quads=quads, splits=splits, warps=block_n // _COLUMNS)


def _tall(m: int, layout: AdditiveLayout, shrink: int) -> AdditiveConfig:
    """Tall blocks, for each looks all vectors up again; two or three of them share a multiprocessor."""
    block_m, block_n = min(128 // shrink, 1 << (m - 1).bit_length()), 64
    while block_n > 32 and math.ceil(layout.cols / block_n) * math.ceil(m / block_m) < _MULTIPROCESSORS // 2:
        block_n //= 2
    many = 2 if layout.books > 2 else 1  # their float32 sums take registers that two codebooks do not
    quads = max(1, 16 // layout.group // shrink // many)
    return AdditiveConfig(block_m=block_m, block_n=block_n, quads=quads, splits=1, warps=4)
