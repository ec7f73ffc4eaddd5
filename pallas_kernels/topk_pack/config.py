"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

from pallas_kernels.backends import tuning
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.topk_pack.layout import TopKLayout


def tuning_key(size: int, layout: TopKLayout) -> str:
    """Names a call in the file of measured configs."""
    return f"{size}/c{layout.chunk}k{layout.k}{'-residual' if layout.residual else ''}"


def choose_config(size: int, layout: TopKLayout, given: BlockConfig | None = None) -> BlockConfig:
    """The config for a vector."""
    if given is not None:
        return given
    measured = tuning.measured("topk_pack", tuning_key(size, layout), BlockConfig)
    if measured is not None:
        return measured
    # 16 entries a thread, 32 in the longest chunks: their bits, running sums and places all stay in registers.
    values = max(2048, 1 << (layout.chunk - 1).bit_length())
    return BlockConfig(values=values, warps=4 if values == 2048 else 8)
