"""Sizes of the programs: those given, else those measured on this GPU, else chosen by rule."""

import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.quantize_pack.layout import PackLayout


def tuning_key(shape: tuple[int, ...], layout: PackLayout) -> str:
    """Names a call in the file of measured configs."""
    size = "x".join(map(str, shape))
    return f"{size}/{layout.kind}-{layout.along}-w{layout.bits}b{layout.block}t{layout.tile}"


def choose_config(
    shape: tuple[int, ...], dtype: jnp.dtype, layout: PackLayout, given: BlockConfig | None = None
) -> BlockConfig:
    """The config for an array of a shape and a dtype."""
    if given is not None:
        return given
    measured = tuning.measured("quantize_pack", tuning_key(shape, layout), BlockConfig)
    if measured is not None:
        return measured
    least = layout.block if layout.along == "flat" else layout.tile
    if layout.along == "cols":
        least *= layout.block
    values = max(least, 4096 if layout.along == "flat" else 8192)
    # A thread takes 16 bytes of each field: its loads are then as wide as they can be.
    threads = values // layout.packing.fields * dtype.itemsize // 16
    return BlockConfig(values=values, warps=max(1, min(8, threads // 32)))
