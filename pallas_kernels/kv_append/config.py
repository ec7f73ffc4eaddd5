"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.kv_append.layout import AppendLayout
from pallas_kernels.kv_attention.unpacking import power_of_two


def tuning_key(shape: tuple[int, ...], layout: AppendLayout) -> str:
    """Names a call in the file of measured configs."""
    side = layout.side
    return f"{'x'.join(map(str, shape))}/{side.bits}b{side.group}{side.axis}{'-sym' * side.sym}t{layout.tile}"


def columns_of(layout: AppendLayout, values: int) -> tuple[int, int]:
    """Groups of channels of a program, and columns of each, padded to a power of two; about ``values`` values."""
    side = layout.side
    if side.axis == "channel":
        return 1, min(max(16, values // layout.span), power_of_two(side.width))
    part = power_of_two(side.group)
    if part != side.group:  # channels of several padded groups would not be consecutive
        return 1, part
    return min(max(1, values // layout.span // part), power_of_two(side.width // side.group)), part


def choose_config(
    shape: tuple[int, ...], dtype: jnp.dtype, layout: AppendLayout, given: BlockConfig | None = None
) -> BlockConfig:
    """The config for a block of a shape and a dtype."""
    if given is not None:
        return given
    measured = tuning.measured("kv_append", tuning_key(shape, layout), BlockConfig)
    if measured is not None:
        return measured
    values = power_of_two(max(8192, layout.span * 16))
    many, part = columns_of(layout, values)
    assert layout.unit is not None  # the layout was checked
    lanes = layout.tile * layout.unit // 32 * many * part
    # A thread takes 16 bytes of each field: its loads are then as wide as they can be.
    return BlockConfig(values=values, warps=max(1, min(8, lanes * dtype.itemsize // 512)))
