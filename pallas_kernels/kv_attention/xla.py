"""The attention in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import UNSEEN, Codes, Fit, KVLayout, Past, Side, Softmax
from pallas_kernels.packing import Packing


def unpacked(words: jax.Array, packing: Packing) -> jax.Array:
    """Codes of packed words ``[..., W, width]``, uint32 ``[..., n, width]``."""
    *lead, _, width = words.shape
    tiles = words.reshape(*lead, packing.tiles, packing.words, width)
    parts = []
    for bits, offset, first in packing.planes:
        tall = packing.tile * bits // 32
        shift = jnp.arange(0, 32, bits, dtype=jnp.uint32).reshape(*(1,) * (len(lead) + 1), -1, 1, 1)
        field = (tiles[..., None, first : first + tall, :] >> shift) & jnp.uint32(2**bits - 1)
        parts.append(field.reshape(*lead, packing.rows, width) << jnp.uint32(offset))
    return functools.reduce(jnp.bitwise_or, parts)


def dequantized(held: Codes, fit: Fit | None, side: Side, layout: KVLayout) -> jax.Array:
    """Keys or values, float32 ``[C, B, K, n, width]``."""
    axis = -2 if side.axis == "channel" else -1
    length = layout.tokens if side.axis == "channel" else side.width

    def spread(a):
        return jnp.repeat(a.astype(jnp.float32), side.group, axis=axis, total_repeat_length=length)

    code = unpacked(held.codes, layout.packing(side)).astype(jnp.float32)
    middle = float(2 ** (side.bits - 1))
    value = spread(held.scale) * (code - middle) if held.low is None else spread(held.low) + spread(held.scale) * code
    if fit is None:
        return value
    return value + jnp.einsum("cbkni,cbkdi->cbknd", *(a.astype(jnp.float32) for a in fit))


def kv_attention_xla(
    q: jax.Array,
    past: Past,
    start: jax.Array,
    stop: jax.Array,
    seen: jax.Array | None,
    bias: jax.Array | None,
    layout: KVLayout,
    *,
    keep_scores: bool = False,
) -> Softmax:
    """The unnormalised average with keys and values unpacked first, in float32."""
    k = dequantized(past.k, past.k_fit, layout.key, layout)
    v = dequantized(past.v, past.v_fit, layout.value, layout)
    blocks = k.shape[0]
    at = jnp.arange(blocks * layout.tokens, dtype=jnp.int32).reshape(blocks, 1, layout.tokens)
    among = (at >= start[None, :, None]) & (at < stop[None, :, None])
    if seen is not None:
        among = among & (seen != 0)
    among = jnp.moveaxis(among, 0, 1)[:, None, None]
    scores = jnp.einsum("bkgd,cbknd->bkgcn", q.astype(jnp.float32), k)
    if bias is not None:
        scores = scores + jnp.moveaxis(bias, 0, 3)
    scores = jnp.where(among, scores, UNSEEN)
    m = jnp.max(scores, axis=(-2, -1))
    weights = jnp.where(among, jnp.exp(scores - m[..., None, None]), 0)
    kept = jnp.moveaxis(scores, 3, 0) if keep_scores else None
    return Softmax(jnp.einsum("bkgcn,cbkne->bkge", weights, v), m, jnp.sum(weights, axis=(-2, -1)), kept)
