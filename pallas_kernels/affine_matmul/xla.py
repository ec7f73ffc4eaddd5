"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.affine_matmul.layout import AffineLayout
from pallas_kernels.packing import Packing


def unpacked(words: jax.Array, packing: Packing) -> jax.Array:
    """Codes of packed words ``[words, cols]``, uint32 ``[rows, cols]``."""
    cols = words.shape[1]
    tiles = words.reshape(packing.tiles, packing.words, cols)
    parts = []
    for width, offset, first in packing.planes:
        tall = packing.tile * width // 32
        shift = jnp.arange(0, 32, width, dtype=jnp.uint32).reshape(1, -1, 1, 1)
        field = (tiles[:, None, first : first + tall] >> shift) & jnp.uint32(2**width - 1)
        parts.append(field.reshape(packing.tiles * packing.tile, cols) << jnp.uint32(offset))
    return functools.reduce(jnp.bitwise_or, parts)[: packing.rows]


def unpacked_zero(scale: jax.Array, zero: jax.Array | None, layout: AffineLayout) -> jax.Array:
    """Zeros whatever their kind, float32 ``[groups, cols]``."""
    if zero is None:
        return jnp.full(scale.shape, 2 ** (layout.bits - 1), jnp.float32)
    if layout.zero_kind == "real":
        return zero.astype(jnp.float32)
    return unpacked(zero.T, layout.zero_packing).T.astype(jnp.float32)


def group_sums(x: jax.Array, layout: AffineLayout) -> jax.Array:
    """Sums of ``x [m, rows]`` over the inputs of each group, float32 ``[m, groups]``."""
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, layout.groups * layout.group - layout.rows)))
    return jnp.sum(padded.reshape(x.shape[0], layout.groups, layout.group), axis=2)


def dequantized(codes: jax.Array, scale: jax.Array, zero: jax.Array | None, layout: AffineLayout) -> jax.Array:
    """The dense matrix, float32 ``[rows, cols]``."""

    def spread(a):
        return jnp.repeat(a, layout.group, axis=0, total_repeat_length=layout.groups * layout.group)[: layout.rows]

    code = unpacked(codes, layout.packing).astype(jnp.float32)
    return spread(scale.astype(jnp.float32)) * (code - spread(unpacked_zero(scale, zero, layout)))


def affine_matmul_xla(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, layout: AffineLayout
) -> jax.Array:
    """``x @ w`` with ``w`` dequantised first."""
    return x @ dequantized(codes, scale, zero, layout).astype(x.dtype)
