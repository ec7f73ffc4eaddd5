"""The same in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import math

import jax
import jax.numpy as jnp

from pallas_kernels.hadamard.layout import HadamardLayout, Rotated, sylvester


def rotated(x: jax.Array, block: int) -> jax.Array:
    """Blocks of the last axis rotated, float32."""
    blocks = x.astype(jnp.float32).reshape(-1, block)
    matrix = jnp.asarray(sylvester(block) / math.sqrt(block))
    return jnp.matmul(blocks, matrix, precision="highest").reshape(x.shape)


def block_hadamard_xla(x: jax.Array, block: int) -> jax.Array:
    """Blocks of the last axis rotated, in the dtype of ``x``."""
    return rotated(x, block).astype(x.dtype)


def hadamard_quantize_xla(x: jax.Array, layout: HadamardLayout) -> Rotated:
    """Rows ``[m, channels]`` rotated, rounded and packed."""
    m, channels = x.shape
    unit = layout.unit_of(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=1))
    level = layout.levels(rotated(x, layout.block), unit[:, None])
    code = (level + jnp.float32(layout.half)).astype(jnp.uint32)
    packing = layout.packing
    shift = (jnp.arange(packing.fields, dtype=jnp.uint32) * jnp.uint32(layout.bits)).reshape(1, 1, -1, 1)
    parted = code.reshape(m, channels // layout.tile, packing.fields, packing.run) << shift
    words = jnp.sum(parted, axis=2, dtype=jnp.uint32).reshape(m, -1)
    return Rotated(words, unit, jnp.sum(level.astype(jnp.int32), axis=1))
