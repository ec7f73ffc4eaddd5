"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.kv_attention.unpacking import power_of_two
from pallas_kernels.mla_attention.layout import MLALayout

_MULTIPROCESSORS = 132
_LEAST_TOKENS = 64  # fewer are not worth a program


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
        """Raises ValueError when the rows of a step lie in two tiles."""
        if layout.side is not None and self.rows > layout.tile:
            raise ValueError(f"mla_attention: config.rows must be at most the tile of {layout.tile}, got {self.rows}")


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
    wide, packed = q.dtype == jnp.float32, layout.side is not None
    # Sums of 64 heads and 512 channels take half of all registers; what unpacking takes beside them halves the heads.
    heads = max(16, min(16 if wide else 32 if packed else 64, power_of_two(q.shape[1])))
    deep = not (packed or wide)
    # The words of several planes do not fit an A100's shared memory twice.
    alone = layout.side is not None and len(layout.packing.planes) > 1
    return MLAConfig(
        heads=heads,
        rows=32,
        segment=256 if deep else 128,
        splits=choose_splits(q, blocks, layout, heads),
        warps=4 if deep and heads == 16 else 8,
        stages=1 if alone else 3 if deep else 2,
    )


def choose_splits(q: jax.Array, blocks: int, layout: MLALayout, heads: int) -> int:
    """The number of splits that takes the least time by the bytes that the busiest multiprocessor waits for.

    Splitting fills idle multiprocessors, and every split stores and reads sums of its own.
    """
    batch, many, _ = q.shape
    programs = batch * math.ceil(many / heads)
    held = batch * blocks * layout.tokens * row_bytes(q, layout)
    most = max(1, min(_MULTIPROCESSORS // programs, blocks * layout.tokens // _LEAST_TOKENS))

    def cost(splits):
        idle = max(1.0, _MULTIPROCESSORS / (splits * programs))
        return held * idle + partial_bytes(q, layout, splits)

    return min(range(1, most + 1), key=cost)


def row_bytes(q: jax.Array, layout: MLALayout) -> float:
    """Bytes of the row of one token, with scales and low ends of 16 bits."""
    side = layout.side
    if side is None:
        return layout.width * q.dtype.itemsize
    groups, columns = layout.scale_shape
    return side.bits * layout.width / 8 + groups * columns / layout.tokens * (2 if side.sym else 4)


def partial_bytes(q: jax.Array, layout: MLALayout, splits: int) -> int:
    """Bytes that the sums of several splits are written and read with."""
    batch, many, _ = q.shape
    return 0 if splits == 1 else 8 * splits * batch * many * (layout.rank + 2)
