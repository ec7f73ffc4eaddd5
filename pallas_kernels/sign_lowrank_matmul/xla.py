"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.xla import unpacked
from pallas_kernels.sign_lowrank_matmul.layout import SignBlocks, SignLayout


def one_block(blocks: SignBlocks, at: jax.Array, layout: SignLayout) -> jax.Array:
    """The block in place ``at``, float32 ``[rows, cols]``."""
    plus = unpacked(blocks.signs[at], layout.packing) == jnp.uint32(1)
    u, v = blocks.u[at].astype(jnp.float32), blocks.v[at].astype(jnp.float32)
    magnitude = jnp.matmul(u, v, precision="highest")
    return jnp.where(plus, magnitude, -magnitude)


def sign_lowrank_matmul_xla(x: jax.Array, blocks: SignBlocks, layout: SignLayout) -> jax.Array:
    """``x @ w`` with ``w`` summed first; a scan, so that it can be differentiated, which skips blocks not loaded."""

    def add(total, given):
        nth, at = given
        wanted = nth < blocks.loaded
        return jax.lax.cond(wanted, lambda: total + one_block(blocks, at, layout), lambda: total), None

    order = jnp.arange(blocks.slots.shape[0], dtype=jnp.int32)
    start = jnp.zeros((layout.rows, layout.cols), jnp.float32)
    w, _ = jax.lax.scan(add, start, (order, blocks.slots))
    return x @ w.astype(x.dtype)
