"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.xla import unpacked
from pallas_kernels.codebook_matmul.layout import CodebookLayout


def codebook_matmul_xla(x: jax.Array, codes: jax.Array, levels: jax.Array, layout: CodebookLayout) -> jax.Array:
    """``x @ w`` with ``w`` looked up first: a select per level, which fuses where a gather would not."""
    code = unpacked(codes, layout.packing)
    w = jnp.zeros(code.shape, jnp.float32)
    for k in range(layout.levels):
        level = jnp.repeat(levels[:, k].astype(jnp.float32), layout.group, axis=0)[: layout.rows]
        w = jnp.where(code == jnp.uint32(k), level, w)
    return x @ w.astype(x.dtype)
