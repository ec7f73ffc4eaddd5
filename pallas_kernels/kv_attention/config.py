"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.kv_attention.layout import KVLayout, Side

_MULTIPROCESSORS = 132
# Parts of the result are stored and read once each; more splits than this share of the cache's bytes cost more than the
# idle multiprocessors they would fill.
_PARTIAL_SHARE = 0.04


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How attention is cut.

    Attributes:
      rows: tokens that are unpacked and multiplied together, a power of two from 16.
      splits: programs that share the tokens of one key head.
      warps, stages: warps of a program, and loads in flight.
    """

    rows: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self):
        if self.rows < 16 or self.rows & (self.rows - 1):
            raise ValueError(f"AttentionConfig.rows must be a power of two from 16, got {self.rows}")
        if self.splits < 1 or self.stages < 1:
            raise ValueError(f"AttentionConfig.splits and stages must be at least 1, got {self.splits}, {self.stages}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"AttentionConfig.warps must be 1, 2, 4 or 8, got {self.warps}")

    def check(self, layout: KVLayout) -> None:
        """Raises ValueError when a tile is not cut into whole runs of tokens."""
        if not layout.run <= self.rows <= layout.tile:
            raise ValueError(
                f"kv_attention: config.rows must be in {layout.run}..{layout.tile} for {layout.key.bits} and "
                f"{layout.value.bits} bits at tile {layout.tile}, got {self.rows}"
            )


def tuning_key(q: jax.Array, blocks: int, layout: KVLayout) -> str:
    """Names a call in the file of measured configs."""
    sides = "-".join(f"{side.bits}b{side.width}g{side.group}{side.axis}" for side in (layout.key, layout.value))
    batch, heads, groups, _ = q.shape
    return f"{batch}x{heads}x{groups}/{blocks}x{layout.tokens}t{layout.tile}/{sides}/{q.dtype.name}"


def choose_config(q: jax.Array, blocks: int, layout: KVLayout, given: AttentionConfig | None = None) -> AttentionConfig:
    """The config for queries ``[B, K, G, d]`` and so many blocks."""
    if given is not None:
        given.check(layout)
        return given
    measured = tuning.measured("kv_attention", tuning_key(q, blocks, layout), AttentionConfig)
    if measured is not None:
        return measured
    batch, heads, groups, _ = q.shape
    key, value = layout.key, layout.value
    tiles = blocks * layout.tokens // layout.tile
    held = blocks * layout.tokens * (_token_bytes(layout, key) + _token_bytes(layout, value))
    affordable = int(_PARTIAL_SHARE * held / (8 * groups * (value.width + 2)))
    splits = max(1, min(2 * _MULTIPROCESSORS // (batch * heads), affordable, tiles // 2))
    # A tile of 256 tokens takes the registers of eight warps; three TF32 products of float32 take twice as many.
    large = layout.tile == 256
    rows = max(layout.run, min(layout.tile, 128 if large and q.dtype != jnp.float32 else 64))
    return AttentionConfig(rows=rows, splits=splits, warps=8 if large else 4, stages=2)


def _token_bytes(layout: KVLayout, side: Side) -> float:
    """Bytes of the keys or values of one token, with scales and low ends of 16 bits."""
    groups, columns = layout.scale_shape(side)
    return side.bits * side.width / 8 + groups * columns / layout.tokens * (2 if side.sym else 4)
