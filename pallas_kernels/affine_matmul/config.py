"""Block sizes of the product: those given, else those measured on this GPU, else chosen by rule."""

import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.backends import tuning
from pallas_kernels.product_config import ProductConfig, product_config


def tuning_key(m: int, layout: AffineLayout, dtype: jnp.dtype) -> str:
    """Names a product in the file of measured configs."""
    kind = f"{layout.bits}b-g{layout.group}-t{layout.tile}-{layout.zero_kind}"
    return f"{m}x{layout.rows}x{layout.cols}/{kind}/{dtype.name}"


def choose_config(m: int, layout: AffineLayout, dtype: jnp.dtype, given: ProductConfig | None = None) -> ProductConfig:
    """The config of a product with ``m`` rows of activations in ``dtype``."""
    if given is not None:
        return given
    measured = tuning.measured("affine_matmul", tuning_key(m, layout, dtype), ProductConfig)
    return measured or product_config(m, layout.packing, layout.cols, dtype)
