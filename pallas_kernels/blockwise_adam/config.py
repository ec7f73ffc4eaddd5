"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

from pallas_kernels.backends import tuning
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.blockwise_adam.layout import AdamLayout


def tuning_key(shape: tuple[int, ...], layout: AdamLayout) -> str:
    """Names a call in the file of measured configs."""
    return f"{'x'.join(map(str, shape))}/b{layout.block}{'-flat' if layout.flat else ''}"


def choose_config(shape: tuple[int, ...], layout: AdamLayout, given: BlockConfig | None = None) -> BlockConfig:
    """The config for an array of a shape."""
    if given is not None:
        return given
    measured = tuning.measured("blockwise_adam", tuning_key(shape, layout), BlockConfig)
    if measured is not None:
        return measured
    width = layout.rows(shape)[2]
    values = max(2048, 1 << (width - 1).bit_length())
    return BlockConfig(values=values, warps=4 if values <= 2048 else 8)
