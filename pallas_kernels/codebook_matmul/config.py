"""Block sizes of the product: those given, else those measured on this GPU, else chosen by rule."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.codebook_matmul.layout import CodebookLayout
from pallas_kernels.product_config import ProductConfig, product_config


def tuning_key(m: int, layout: CodebookLayout, dtype: jnp.dtype) -> str:
    """Names a product in the file of measured configs."""
    return f"{m}x{layout.rows}x{layout.cols}/l{layout.levels}-g{layout.group}-t{layout.tile}/{dtype.name}"


def choose_config(
    m: int, layout: CodebookLayout, dtype: jnp.dtype, given: ProductConfig | None = None
) -> ProductConfig:
    """The config of a product with ``m`` rows of activations in ``dtype``."""
    if given is not None:
        return given
    measured = tuning.measured("codebook_matmul", tuning_key(m, layout, dtype), ProductConfig)
    if measured is not None:
        return measured
    rule = product_config(m, layout.packing, layout.cols, dtype)
    # The tables of a block's columns stay in registers: fewer columns, and as many threads to hold them as still read
    # 16 bytes each of the words of one plane.
    block_n = min(rule.block_n, 32)
    tiles = max(rule.tiles, 32 // layout.packing.run) if m > 64 else rule.tiles
    threads = layout.packing.run * tiles * block_n * 4 // 16
    most = 8 if m > 64 else 4
    warps = max(1, min(most, threads // 32))
    return dataclasses.replace(rule, block_n=block_n, tiles=tiles, warps=warps)
