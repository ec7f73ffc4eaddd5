"""Softmax attention with grouped heads, masks and an optional past, as pure functions.

Letters: B batch, T new positions, S past slots, H query heads, K key heads, G = H / K, d head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a row with nothing to see (left padding) gives a uniform average and no NaN.
_UNSEEN = -1e30
# Causal attention over at least this many queries a segment is cut into segments.
_SEGMENTS, _SHORTEST = 4, 64


class Past(NamedTuple):
    """Keys and values computed earlier, and which of them each new position sees.

    Attributes:
      k, v: ``[B, S, K, d]``.
      seen: bool ``[B, T or 1, S]``.
    """

    k: jax.Array
    v: jax.Array
    seen: jax.Array


def token_positions(mask: jax.Array) -> jax.Array:
    """Numbers the real tokens of each row from 0: bool ``[B, T] -> int32 [B, T]``; padding before them gets 0."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)


def causal_seen(length: int, mask: jax.Array | None = None, window: int | None = None) -> jax.Array:
    """Which keys every query sees among ``length`` new positions: itself and earlier ones.

    Args:
      length: T.
      mask: bool ``[B, T]``, the real tokens; padding is seen by no one.
      window: number of last positions in sight, the query's own included; None for all.

    Returns:
      bool ``[B or 1, T, T]``, query by key.
    """
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
    seen = key <= query
    if window is not None:
        seen &= query - key < window
    return seen[None] if mask is None else seen[None] & mask[:, None, :]


def past_seen(mask: jax.Array, start: jax.Array, length: int, window: int | None = None) -> jax.Array:
    """Which past slots the new positions ``start .. start + length - 1`` see.

    Args:
      mask: bool ``[B, S]``, slots that hold a real token, all before ``start``.
      start: int scalar, slot of the first new position.
      length: T.
      window: as in `causal_seen`.

    Returns:
      bool ``[B, T or 1, S]``.
    """
    if window is None:
        return mask[:, None, :]
    query, slot = start + jnp.arange(length)[:, None], jnp.arange(mask.shape[1])[None, :]
    return (query - slot < window)[None] & mask[:, None, :]


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, past: Past | None = None, *, causal: bool = False
) -> jax.Array:
    """``softmax(q kᵀ / sqrt(d)) v`` with scores and softmax in float32.

    A past is never joined to the new keys, which would copy it: its scores are, and they are small.

    Args:
      q: ``[B, T, H, d]``.
      k, v: ``[B, T, K, d]``; K divides H, and query head ``h`` reads key head ``h // G``. Values may be wider or
        narrower than keys.
      seen: bool ``[B or 1, T, T]`` or ``[B or 1, 1, T]``, query by key, new positions only.
      past: earlier keys and values.
      causal: promises that ``seen`` has no later key, so that long inputs skip most of what they would mask.

    Returns:
      ``[B, T, H * d]`` in the dtype of ``q``, d being the width of values.
    """
    t = q.shape[1]
    if not causal or past is not None or t < _SEGMENTS * _SHORTEST:
        return _attend(q, k, v, seen, past)
    # The number of segments is fixed, so the size of the trace is too; four do 5/8 of the work of one.
    edges = [t * i // _SEGMENTS for i in range(_SEGMENTS + 1)]
    parts = [
        _attend(q[:, start:end], k[:, :end], v[:, :end], seen[:, start:end, :end], None)
        for start, end in zip(edges, edges[1:], strict=False)
    ]
    return jnp.concatenate(parts, axis=1)


def _attend(q, k, v, seen, past):
    b, t, heads, width = q.shape
    kv_heads = k.shape[2]
    # The query heads of a key head are rows of one product: [B, K, G * T, d].
    rows = (q * width**-0.5).reshape(b, t, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    scores = _scores(rows, k, seen)
    if past is not None:
        scores = jnp.concatenate([_scores(rows, past.k, past.seen), scores], axis=-1)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if past is None:
        context = _average(weights, v)
    else:
        slots = past.k.shape[1]
        context = _average(weights[..., :slots], past.v) + _average(weights[..., slots:], v)
    # Divided by the total here, where there are d numbers a query, and not as many as keys.
    context = context / total
    return context.transpose(0, 3, 1, 2, 4).reshape(b, t, -1).astype(q.dtype)


def _scores(rows: jax.Array, k: jax.Array, seen: jax.Array) -> jax.Array:
    """``[B, K, G, T, d]`` and ``[B, S, K, d]`` to ``[B, K, G, T, S]`` in float32."""
    b, kv_heads, groups, t, width = rows.shape
    keys = k.astype(rows.dtype).transpose(0, 2, 3, 1)
    flat = rows.reshape(b, kv_heads, groups * t, width)
    scores = jnp.matmul(flat, keys, preferred_element_type=jnp.float32)
    return jnp.where(seen[:, None, None], scores.reshape(b, kv_heads, groups, t, -1), _UNSEEN)


def _average(weights: jax.Array, v: jax.Array) -> jax.Array:
    """``[B, K, G, T, S]`` in float32 and ``[B, S, K, d]`` to ``[B, K, G, T, d]`` in float32."""
    b, kv_heads, groups, t, slots = weights.shape
    flat = weights.astype(v.dtype).reshape(b, kv_heads, groups * t, slots)
    context = jnp.matmul(flat, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    return context.reshape(b, kv_heads, groups, t, -1)
