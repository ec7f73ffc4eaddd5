"""The largest and the smallest entries of every vector, set apart with value and place and put back.

A vector is a channel of keys along tokens, or a token of values along heads and channels.

Letters: B batch, K key heads, n tokens of a block, d head width, m entries set apart of a vector.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Kind = Literal["key", "value"]


def outliers(sparsity: float, length: int) -> int:
    """Largest entries kept of a vector, and as many smallest: ``floor(s N / 2)``."""
    return int(sparsity * length / 2 + 1e-9)


def vectors_of(x: jax.Array, kind: Kind) -> jax.Array:
    """``[B, K, n, d]`` with the vectors that outliers are sought in on the last axis."""
    if kind == "key":
        return jnp.swapaxes(x, -1, -2)
    b, heads, tokens, width = x.shape
    return jnp.swapaxes(x, 1, 2).reshape(b, tokens, heads * width)


def entries_of(vectors: jax.Array, kind: Kind, heads: int) -> jax.Array:
    """Inverse of `vectors_of`."""
    if kind == "key":
        return jnp.swapaxes(vectors, -1, -2)
    b, tokens, both = vectors.shape
    return jnp.swapaxes(vectors.reshape(b, tokens, heads, both // heads), 1, 2)


def _extremes(vectors: jax.Array, keep: jax.Array, count: int) -> jax.Array:
    """Places of the ``count`` smallest and ``count`` largest kept entries, int32 ``[..., 2 count]``.

    By rank and not by threshold, so that there are never more, even under ties.
    """
    order = jnp.argsort(jnp.where(keep, vectors, jnp.inf), axis=-1)
    real = jnp.sum(keep, axis=-1, keepdims=True, dtype=jnp.int32)
    start = jnp.maximum(real - count, count)
    rank = jnp.arange(count, dtype=jnp.int32)
    high = start + rank.reshape(*(1,) * (start.ndim - 1), count)
    low = jnp.broadcast_to(rank.reshape(*(1,) * (start.ndim - 1), count), high.shape)
    return jnp.take_along_axis(order, jnp.concatenate([low, high], axis=-1), axis=-1)


def set_apart(
    x: jax.Array, kind: Kind, sparsity: float, keep: jax.Array, exact_dtype: str
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The block with its outliers replaced by means, their places and values; None where there are none.

    Args:
      x: float32 ``[B, K, n, d]``.
      kind: which vectors.
      sparsity: see `outliers`.
      keep: bool ``[B, n]``, tokens that count.
      exact_dtype: of the values.

    Returns:
      ``[B, K, n, d]``, and two arrays ``[B, K, d, m]`` of keys or ``[B, n, m]`` of values.
    """
    vectors = vectors_of(x, kind)
    many = outliers(sparsity, vectors.shape[-1])
    if not many:
        return x, None, None
    counts = keep[:, None, None, :] if kind == "key" else keep[:, :, None]
    counts = jnp.broadcast_to(counts, vectors.shape)
    at = _extremes(vectors, counts, many)
    exact = jnp.take_along_axis(vectors, at, axis=-1).astype(exact_dtype)
    total = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(counts, vectors, 0), axis=-1, keepdims=True) / total
    plain = jnp.put_along_axis(vectors, at, jnp.broadcast_to(mean, exact.shape), axis=-1, inplace=False)
    places = at.astype(jnp.uint16 if vectors.shape[-1] <= 65536 else jnp.uint32)
    return entries_of(plain, kind, x.shape[1]), places, exact


def put_back(held: jax.Array, at: jax.Array, exact: jax.Array, kind: Kind) -> jax.Array:
    """``held [B, K, n, d]`` with ``exact`` in the places ``at``."""
    vectors = vectors_of(held, kind)
    exact = exact.astype(jnp.float32)
    vectors = jnp.put_along_axis(vectors, at.astype(jnp.int32), exact, axis=-1, inplace=False)
    return entries_of(vectors, kind, held.shape[1])
