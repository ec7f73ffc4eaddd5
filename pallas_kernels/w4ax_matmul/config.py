"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses
import math

from pallas_kernels.backends import tuning
from pallas_kernels.w4ax_matmul.layout import W4AxLayout

FUSED_ROWS = 16  # the fewest rows a tensor-core product takes
_MULTIPROCESSORS = 132
# Partial results are stored and read once each; more splits than this share of the weights' bytes cost more than the
# idle multiprocessors they would fill.
_PARTIAL_SHARE = 0.035


@dataclasses.dataclass(frozen=True, kw_only=True)
class W4AxConfig:
    """How the product is cut.

    Attributes:
      fused: whether the launch that multiplies also rounds the activations, 16 rows at most; else one in front does.
      block_m, block_n: rows and columns of the result that one program makes, powers of two from 16 and from 32.
      splits: programs that share the depth of one block of the result.
      warps, stages: warps of a program, and loads in flight.
    """

    fused: bool
    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self):
        for name, least in (("block_m", 16), ("block_n", 32)):
            value = getattr(self, name)
            if value < least or value & (value - 1):
                raise ValueError(f"W4AxConfig.{name} must be a power of two from {least}, got {value}")
        if self.fused and self.block_m != FUSED_ROWS:
            raise ValueError(f"W4AxConfig.block_m must be {FUSED_ROWS} where fused, got {self.block_m}")
        if self.splits < 1 or self.stages < 1:
            raise ValueError(f"W4AxConfig.splits and stages must be at least 1, got {self.splits}, {self.stages}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"W4AxConfig.warps must be 1, 2, 4 or 8, got {self.warps}")

    def check(self, m: int) -> None:
        """Raises ValueError for more rows than a fused launch takes."""
        if self.fused and m > FUSED_ROWS:
            raise ValueError(f"w4ax_matmul: config.fused takes at most {FUSED_ROWS} rows, got {m}")


def tuning_key(m: int, layout: W4AxLayout) -> str:
    """Names a product in the file of measured configs."""
    return f"{m}x{layout.rows}x{layout.cols}/b{layout.block}"


def choose_config(m: int, layout: W4AxLayout, given: W4AxConfig | None = None) -> W4AxConfig:
    """The config of a product with ``m`` rows of activations."""
    if given is not None:
        given.check(m)
        return given
    measured = tuning.measured("w4ax_matmul", tuning_key(m, layout), W4AxConfig)
    if measured is not None:
        return measured
    if m > 64:
        programs = math.ceil(m / 128) * math.ceil(layout.cols / 128)
        # Both halves of a block of 256 do not leave registers for the larger blocks.
        large = layout.block < 256 and programs >= _MULTIPROCESSORS // 2
        side, warps, stages = (128, 8, 3) if large else (64, 4, 2)
        return W4AxConfig(fused=False, block_m=side, block_n=side, splits=1, warps=warps, stages=stages)
    block_m = max(FUSED_ROWS, 1 << (m - 1).bit_length())
    block_n = 64 if layout.cols >= 16 * _MULTIPROCESSORS else 32
    programs = math.ceil(layout.cols / block_n)
    # A step waits for its own activations to be rounded; several programs on a multiprocessor wait at the same time.
    affordable = int(_PARTIAL_SHARE * layout.rows / 2 / (8 * m))
    splits = max(1, min(4 * _MULTIPROCESSORS // programs, affordable, layout.blocks // 2))
    warps = 2 if m <= 4 else 4
    return W4AxConfig(
        fused=m <= FUSED_ROWS,
        block_m=block_m,
        block_n=block_n,
        splits=splits,
        warps=warps // 2 if layout.block == 64 and m <= FUSED_ROWS else warps,
        stages=4 if m <= FUSED_ROWS else 2,
    )
