"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses

from pallas_kernels.backends import tuning
from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout

_MULTIPROCESSORS = 132


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSparseConfig:
    """How the product is cut.

    Attributes:
      block_n: outputs of a program, a power of two.
      lanes: lanes that share an output, a power of two.
      warps, stages: warps of a program, and loads in flight.
    """

    block_n: int
    lanes: int
    warps: int
    stages: int

    def __post_init__(self):
        for name in ("block_n", "lanes"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"GroupSparseConfig.{name} must be a power of two, got {value}")
        if self.warps not in (1, 2, 4, 8):
            raise ValueError(f"GroupSparseConfig.warps must be 1, 2, 4 or 8, got {self.warps}")
        if self.stages < 1:
            raise ValueError(f"GroupSparseConfig.stages must be at least 1, got {self.stages}")


def tuning_key(m: int, layout: GroupSparseLayout) -> str:
    """Names a product in the file of measured configs."""
    kind = "ell" if layout.equal else "bsr"
    return f"{m}x{layout.rows}x{layout.cols}/w{layout.bits}g{layout.group}-{kind}{layout.kept}"


def choose_config(m: int, layout: GroupSparseLayout, given: GroupSparseConfig | None = None) -> GroupSparseConfig:
    """The config of a product with ``m`` rows of activations."""
    if given is not None:
        return given
    measured = tuning.measured("group_sparse_matmul", tuning_key(m, layout), GroupSparseConfig)
    if measured is not None:
        return measured
    total = max(16, 2048 // layout.group)  # 16 weights a thread at a time
    block_n = 32
    while block_n > 8 and layout.cols // block_n < _MULTIPROCESSORS:
        block_n //= 2
    return GroupSparseConfig(block_n=block_n, lanes=max(1, total // block_n), warps=4, stages=2)
