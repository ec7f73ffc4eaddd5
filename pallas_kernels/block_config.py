"""Sizes of kernels that go through an array block by block and multiply nothing."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """How much one program takes.

    Attributes:
      values: values of the array, a power of two from 32; whole blocks, at least one.
      warps: warps of a program.
    """

    values: int
    warps: int

    def __post_init__(self):
        if self.values < 32 or self.values & (self.values - 1):
            raise ValueError(f"BlockConfig.values must be a power of two from 32, got {self.values}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"BlockConfig.warps must be 1, 2, 4 or 8, got {self.warps}")
