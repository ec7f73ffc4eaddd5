"""How much attention every token of a prompt got: over all queries that could see it, and from the last ones.

Letters: B batch, K key heads, G query heads of a key head, T tokens, d width, w last queries.
"""

import jax
import jax.numpy as jnp

from compressjax.kvcache.partial import UNSEEN, dot

# Queries worked on at once; scores of so many and of all heads are alive, never T by T.
_TILE = 64


def attention_mass(
    q: jax.Array, k: jax.Array, real: jax.Array, last: int, window: int | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Column sums of the causal softmax.

    Args:
      q: ``[B, K, G, T, d]``, scaled.
      k: ``[B, K, T, d]``.
      real: bool ``[B, T]``; padded queries do not count.
      last: w.
      window: a query sees this many last positions; None for all.

    Returns:
      ``total``, float32 ``[B, K, T]``: what all queries gave to a token, mean over the query heads of a key head;
      ``looks``, int32 ``[B, T]``: how many queries could see it; and ``recent``, float32 ``[B, K, T]``: the mean over
      the last w queries.
    """
    b, heads, groups, tokens, width = q.shape
    tiles = -(-tokens // _TILE)
    padded = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, tiles * _TILE - tokens), (0, 0)))
    live = jnp.pad(real, ((0, 0), (0, tiles * _TILE - tokens)))
    key = jnp.arange(tokens)

    def tile(total, at):
        rows = jax.lax.dynamic_slice_in_dim(padded, at * _TILE, _TILE, axis=3)
        query = at * _TILE + jnp.arange(_TILE)
        seen = key[None] <= query[:, None]
        if window is not None:
            seen &= query[:, None] - key[None] < window
        seen = seen[None] & real[:, None, :]
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], dot(rows, k), UNSEEN), axis=-1)
        counts = jax.lax.dynamic_slice_in_dim(live, at * _TILE, _TILE, axis=1)
        weights = jnp.mean(weights * counts[:, None, None, :, None].astype(jnp.float32), axis=2)
        near = counts & (query >= tokens - last)[None]
        recent = jnp.sum(weights * near[:, None, :, None].astype(jnp.float32), axis=2)
        return (total[0] + jnp.sum(weights, axis=2), total[1] + recent), None

    zero = jnp.zeros((b, heads, tokens), jnp.float32)
    (total, recent), _ = jax.lax.scan(tile, (zero, zero), jnp.arange(tiles))
    after = jnp.cumsum(real[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
    if window is not None:
        after = jnp.minimum(after, window)
    asking = jnp.sum(real[:, max(0, tokens - last) :], axis=1, dtype=jnp.int32)
    return total, after, recent / jnp.maximum(asking, 1).astype(jnp.float32)[:, None, None]


def max_pool(score: jax.Array, size: int) -> jax.Array:
    """Every score ``[..., T]`` raised to the largest among its ``size`` neighbours, itself in the middle."""
    if size == 1:
        return score
    window = (1,) * (score.ndim - 1) + (size,)
    return jax.lax.reduce_window(score, -jnp.inf, jax.lax.max, window, (1,) * score.ndim, "SAME")
