"""A low-rank fit by a few turns of power iteration, and products with it that never form it.

Letters: B batch, K key heads, G query heads of a key head, T queries, n tokens, d width, r rank.
"""

import jax
import jax.numpy as jnp

from compressjax.kvcache.partial import dot, mix


def low_rank(error: jax.Array, rank: int, iters: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    """``A [..., n, r]`` and ``B [..., d, r]`` with ``A Bᵀ`` near the best fit of rank r to ``error [..., n, d]``.

    Power iteration from one fixed random start; both bases are made orthonormal in the last turn. B is taken from the
    A that is stored, in ``dtype``.
    """
    error = error.astype(jnp.float32)
    flipped = jnp.swapaxes(error, -1, -2)
    start = jax.random.uniform(jax.random.key(0), (error.shape[-1], rank))
    b = jnp.broadcast_to(start, (*error.shape[:-2], error.shape[-1], rank))
    for _ in range(iters - 1):
        b = jnp.matmul(flipped, jnp.matmul(error, b))
        # Powers of a large error would leave float32; the span is what counts.
        b = b / jnp.maximum(jnp.max(jnp.abs(b), axis=(-2, -1), keepdims=True), 1e-30)
    b = _orthonormal(b)
    a = _orthonormal(jnp.matmul(error, b)).astype(dtype)
    return a, jnp.matmul(flipped, a.astype(jnp.float32)).astype(dtype)


def _orthonormal(x):
    """Columns made orthonormal; a matrix of rank zero gives columns that are finite."""
    q = jnp.linalg.qr(x)[0]
    return jnp.where(jnp.isfinite(q), q, 0)


def thin(q: jax.Array, b: jax.Array) -> jax.Array:
    """``[B, K, G, T, d]`` with ``[B, K, d, r]`` to ``[B, K, G, T, r]``."""
    return mix(q.astype(jnp.float32), b)


def wide(x: jax.Array, b: jax.Array) -> jax.Array:
    """``[B, K, G, T, r]`` with ``[B, K, d, r]`` to ``[B, K, G, T, d]``."""
    return dot(x, b)
