"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.additive_matmul.layout import AdditiveLayout


def summed_vectors(codes: jax.Array, codebooks: jax.Array, layout: AdditiveLayout) -> jax.Array:
    """The dense matrix before its scales, float32 ``[rows, cols]``."""
    total = jnp.zeros((layout.groups, layout.cols, layout.group), jnp.float32)
    for m in range(layout.books):
        total = total + jnp.take(codebooks[m], codes[:, :, m].astype(jnp.int32), axis=0).astype(jnp.float32)
    return jnp.swapaxes(total, 1, 2).reshape(layout.rows, layout.cols)


def additive_matmul_xla(
    x: jax.Array, codes: jax.Array, codebooks: jax.Array, scale: jax.Array, layout: AdditiveLayout
) -> jax.Array:
    """``x @ w`` with the vectors looked up and added first; outputs are scaled at the end."""
    w = summed_vectors(codes, codebooks, layout).astype(x.dtype)
    total = jnp.matmul(x, w, preferred_element_type=jnp.float32)
    factor = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (layout.cols,))
    return (total * factor).astype(x.dtype)
