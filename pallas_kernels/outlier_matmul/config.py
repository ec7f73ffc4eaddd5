"""Block sizes of the product: those of the packed product, smaller where every weight takes a scale of its own."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.affine_matmul.config import choose_config as affine_config
from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.backends.packed_product import fields_share_groups
from pallas_kernels.codebook_matmul.config import choose_config as codebook_config
from pallas_kernels.codebook_matmul.layout import CodebookLayout
from pallas_kernels.product_config import ProductConfig


def choose_config(
    m: int, layout: AffineLayout | CodebookLayout, dtype: jnp.dtype, given: ProductConfig | None = None
) -> ProductConfig:
    """The config of a product with ``m`` rows of activations in ``dtype``."""
    if isinstance(layout, CodebookLayout):
        return codebook_config(m, layout, dtype, given)
    config = affine_config(m, layout, dtype, given)
    if given is not None or fields_share_groups(layout.packing, layout.group, config.tiles):
        return config
    # Scales and real zeros of single weights, beside the outliers' places, do not leave registers for larger blocks.
    return dataclasses.replace(
        config,
        block_m=min(config.block_m, 32),
        block_n=min(config.block_n, 32 if m <= 16 else 16),
        warps=min(config.warps, 4 if m <= 16 else 2),
        stages=min(config.stages, 2),
    )
