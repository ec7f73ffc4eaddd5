"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.hadamard.layout import HadamardLayout

_MULTIPROCESSORS = 132
_MOST_ROWS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class HadamardConfig:
    """How much one program takes.

    Attributes:
      values: values of one step, a power of two; at least 16 blocks are rotated at a time.
      rows: rows of a program that rounds, a power of two; steps of one that only rotates.
      warps, stages: warps of a program, and loads in flight.
    """

    values: int
    rows: int
    warps: int
    stages: int

    def __post_init__(self):
        for name in ("values", "rows"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"HadamardConfig.{name} must be a power of two, got {value}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"HadamardConfig.warps must be 1, 2, 4 or 8, got {self.warps}")
        if self.stages < 1:
            raise ValueError(f"HadamardConfig.stages must be at least 1, got {self.stages}")

    def chunk(self, layout: HadamardLayout, channels: int) -> int:
        """Channels of one step of a program that rounds rows of ``channels``."""
        wanted = min(self.values // self.rows, 1 << (channels - 1).bit_length())
        return max(wanted, 16 * layout.block // self.rows, layout.block, layout.tile)


def tuning_key(m: int, channels: int, layout: HadamardLayout | None, block: int) -> str:
    """Names a call in the file of measured configs; without a layout, the rotation alone."""
    return f"{m}x{channels}/{f'w{layout.bits}t{layout.tile}' if layout else 'rotate'}-b{block}"


def choose_config(
    m: int,
    channels: int,
    layout: HadamardLayout | None,
    block: int,
    dtype: jnp.dtype,
    given: HadamardConfig | None = None,
) -> HadamardConfig:
    """The config for ``m`` rows; without a layout, for the rotation alone."""
    if given is not None:
        return given
    measured = tuning.measured("hadamard", tuning_key(m, channels, layout, block), HadamardConfig)
    if measured is not None:
        return measured
    # Three products for float32 leave registers only to fewer blocks, shared by more warps.
    wide = dtype == jnp.float32
    values, warps = (2048, 8) if wide else (4096, 4)
    if layout is None:
        # The matrix of signs is made once per program, so many rows want programs of several steps.
        steps = m * channels // (values * 2 * _MULTIPROCESSORS)
        rows = 1 << max(0, min(3, steps.bit_length() - 1))
        return HadamardConfig(values=values, rows=rows, warps=warps, stages=2)
    share = m // _MULTIPROCESSORS  # few rows in programs of their own, or most multiprocessors stand still
    rows = min(_MOST_ROWS // 2 if wide else _MOST_ROWS, 1 << max(0, share.bit_length() - 1))
    return HadamardConfig(values=values, rows=rows, warps=warps, stages=2)
