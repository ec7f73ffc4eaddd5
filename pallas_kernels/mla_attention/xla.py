"""The attention in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import UNSEEN, Codes, Softmax
from pallas_kernels.kv_attention.xla import unpacked
from pallas_kernels.mla_attention.layout import Latents, MLALayout


def restored(latents: Latents, layout: MLALayout) -> jax.Array:
    """Rows, float32 ``[C, B, n, r + p]``."""
    if not isinstance(latents, Codes):
        return latents.astype(jnp.float32)
    side = layout.side
    assert side is not None  # the layout of packed rows has one
    axis, length = (-2, layout.tokens) if side.axis == "channel" else (-1, layout.width)

    def spread(a):
        return jnp.repeat(a.astype(jnp.float32), side.group, axis=axis, total_repeat_length=length)

    code = unpacked(latents.codes, layout.packing).astype(jnp.float32)
    if latents.low is None:
        return spread(latents.scale) * (code - float(2 ** (side.bits - 1)))
    return spread(latents.low) + spread(latents.scale) * code


def mla_attention_xla(
    q: jax.Array, latents: Latents, start: jax.Array, stop: jax.Array, seen: jax.Array | None, layout: MLALayout
) -> Softmax:
    """The unnormalised average of latents, in float32."""
    rows = restored(latents, layout)
    at = jnp.arange(rows.shape[0] * layout.tokens, dtype=jnp.int32).reshape(rows.shape[0], 1, layout.tokens)
    among = (at >= start[None, :, None]) & (at < stop[None, :, None])
    if seen is not None:
        among = among & (seen != 0)
    among = jnp.moveaxis(among, 0, 1)[:, None]
    scores = jnp.where(among, jnp.einsum("bhd,cbnd->bhcn", q.astype(jnp.float32), rows), UNSEEN)
    m = jnp.max(scores, axis=(-2, -1))
    weights = jnp.where(among, jnp.exp(scores - m[..., None, None]), 0)
    acc = jnp.einsum("bhcn,cbnr->bhr", weights, rows[..., : layout.rank])
    return Softmax(acc, m, jnp.sum(weights, axis=(-2, -1)))
