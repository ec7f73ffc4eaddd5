"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.kv_attention.unpacking import power_of_two
from pallas_kernels.mla_attention.layout import MLALayout

_MULTIPROCESSORS = 132


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """How attention is cut.

    Attributes:
      heads: query heads of a program, a power of two from 16.
      rows: tokens that are multiplied together, a power of two from 16.
      segment: most channels of one product, a power of two from 16.
      splits: programs that share the tokens of one text.
      warps, stages: warps of a program, and loads in flight.
    """

    heads: int
    rows: int
    segment: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self):
        for field in ("heads", "rows", "segment"):
            value = getattr(self, field)
            if value < 16 or value & (value - 1):
                raise ValueError(f"MLAConfig.{field} must be a power of two from 16, got {value}")
        if self.splits < 1 or self.stages < 1:
            raise ValueError(f"MLAConfig.splits and stages must be at least 1, got {self.splits}, {self.stages}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"MLAConfig.warps must be 1, 2, 4 or 8, got {self.warps}")

    def check(self, layout: MLALayout) -> None:
        """Raises ValueError when a tile is not cut into whole runs of tokens."""
        if layout.side is not None and not layout.packing.run <= self.rows <= layout.tile:
            raise ValueError(
                f"mla_attention: config.rows must be in {layout.packing.run}..{layout.tile} for {layout.side.bits} "
                f"bits at tile {layout.tile}, got {self.rows}"
            )


def tuning_key(q: jax.Array, blocks: int, layout: MLALayout) -> str:
    """Names a call in the file of measured configs."""
    side = layout.side
    kind = "float" if side is None else f"{side.bits}b{side.group}{side.axis}t{layout.tile}"
    batch, heads, _ = q.shape
    return f"{batch}x{heads}/{blocks}x{layout.tokens}/{layout.rank}+{layout.rope}/{kind}/{q.dtype.name}"


def choose_config(q: jax.Array, blocks: int, layout: MLALayout, given: MLAConfig | None = None) -> MLAConfig:
    """The config for queries ``[B, H, r + p]`` and so many blocks."""
    if given is not None:
        given.check(layout)
        return given
    measured = tuning.measured("mla_attention", tuning_key(q, blocks, layout), MLAConfig)
    if measured is not None:
        return measured
    heads = max(16, min(64, power_of_two(q.shape[1])))
    rows = 32
    return MLAConfig(heads=heads, rows=rows, segment=512, splits=1, warps=8, stages=2)
