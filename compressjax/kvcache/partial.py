"""Attention over a part of the cache, and how parts are put together by their log-sum-exp.

Letters: B batch, K key heads, G query heads of a key head, T new positions, S slots, d and e widths of keys and values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to see gives a uniform average and no NaN.
UNSEEN = -1e30


class Partial(NamedTuple):
    """An unnormalised softmax average: ``acc = sum_s exp(score_s - m) v_s`` and ``l = sum_s exp(score_s - m)``.

    Attributes:
      acc: float32 ``[B, K, G, T, e]``.
      m: float32 ``[B, K, G, T]``, the largest score.
      l: float32 ``[B, K, G, T]``.
    """

    acc: jax.Array
    m: jax.Array
    l: jax.Array  # noqa: E741


def dot(q: jax.Array, k: jax.Array) -> jax.Array:
    """``[B, K, G, T, d]`` with ``[B, K, S, d]`` to float32 ``[B, K, G, T, S]``."""
    b, heads, groups, t, width = q.shape
    rows = q.astype(jnp.float32).reshape(b, heads, groups * t, width)
    scores = jnp.matmul(rows, jnp.swapaxes(k.astype(jnp.float32), -1, -2))
    return scores.reshape(b, heads, groups, t, k.shape[-2])


def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    """``[B, K, G, T, S]`` with ``[B, K, S, e]`` to float32 ``[B, K, G, T, e]``."""
    b, heads, groups, t, slots = weights.shape
    out = jnp.matmul(weights.reshape(b, heads, groups * t, slots), v.astype(jnp.float32))
    return out.reshape(b, heads, groups, t, v.shape[-1])


def weigh(scores: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Softmax weights before division.

    Args:
      scores: float32 ``[B, K, G, T, S]``.
      seen: bool that broadcasts against it.

    Returns:
      ``exp(score - m)``, ``m`` and the sum of weights.
    """
    scores = jnp.where(seen, scores, UNSEEN)
    m = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - m[..., None])
    return weights, m, jnp.sum(weights, axis=-1)


def attend_exact(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> Partial:
    """Attention to keys and values as they are.

    Args:
      q: ``[B, K, G, T, d]``, already scaled.
      k, v: ``[B, K, S, d]`` and ``[B, K, S, e]``.
      seen: bool that broadcasts against ``[B, K, G, T, S]``.
    """
    weights, m, total = weigh(dot(q, k), seen)
    return Partial(mix(weights, v), m, total)


def combine(*parts: Partial) -> Partial:
    """One partial for several disjoint sets of slots."""
    m = parts[0].m
    for part in parts[1:]:
        m = jnp.maximum(m, part.m)
    factors = [jnp.exp(part.m - m) for part in parts]
    acc = sum(part.acc * factor[..., None] for part, factor in zip(parts, factors, strict=True))
    total = sum(part.l * factor for part, factor in zip(parts, factors, strict=True))
    return Partial(jnp.asarray(acc), m, jnp.asarray(total))


def combine_axis(part: Partial) -> Partial:
    """`combine` over a leading axis of all three arrays, such as that of chunks."""
    m = jnp.max(part.m, axis=0)
    factor = jnp.exp(part.m - m[None])
    return Partial(jnp.sum(part.acc * factor[..., None], axis=0), m, jnp.sum(part.l * factor, axis=0))


def combine_mesh(part: Partial, axis_name: str) -> Partial:
    """`combine` over a mesh axis, for caches whose slots are spread over devices; runs inside ``shard_map``."""
    m = jax.lax.pmax(part.m, axis_name)
    factor = jnp.exp(part.m - m)
    return Partial(jax.lax.psum(part.acc * factor[..., None], axis_name), m, jax.lax.psum(part.l * factor, axis_name))


def finish(part: Partial) -> jax.Array:
    """The average itself, float32 ``[B, K, G, T, e]``."""
    return part.acc / part.l[..., None]


def log_sum_exp(part: Partial) -> jax.Array:
    """Logarithm of the softmax's denominator, float32 ``[B, K, G, T]``."""
    return part.m + jnp.log(part.l)
