"""Block sizes of the product: those given, else those measured on this GPU, else chosen by rule."""

import jax.numpy as jnp

from pallas_kernels.backends import tuning
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.sign_lowrank_matmul.layout import SignLayout


def tuning_key(m: int, layout: SignLayout, dtype: jnp.dtype) -> str:
    """Names a product in the file of measured configs."""
    return f"{m}x{layout.rows}x{layout.cols}/r{layout.rank}-t{layout.tile}/{dtype.name}"


def choose_config(m: int, layout: SignLayout, dtype: jnp.dtype, given: ProductConfig | None = None) -> ProductConfig:
    """The config of a product with ``m`` rows of activations in ``dtype``."""
    if given is not None:
        return given
    measured = tuning.measured("sign_lowrank_matmul", tuning_key(m, layout, dtype), ProductConfig)
    if measured is not None:
        return measured
    # Fields of a bit are short runs, so several tiles make a product deep enough. Signs and magnitudes of a field are
    # kept for all columns of the block: narrow blocks leave registers to them.
    tiles = max(1, 32 // layout.packing.run)
    block_m = 16 if m <= 16 or layout.rank == 1 else 32
    return ProductConfig(block_m=block_m, block_n=32, tiles=tiles, splits=1, warps=4, stages=2)
