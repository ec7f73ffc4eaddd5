"""The same in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.backends.pallas_triton import magnitude
from pallas_kernels.kv_append import rounding
from pallas_kernels.kv_append.layout import AppendLayout
from pallas_kernels.kv_attention.layout import Codes


def packed(code: jax.Array, layout: AppendLayout) -> jax.Array:
    """Codes ``[..., n, width]`` to words ``[..., W, width]``."""
    *lead, _, width = code.shape
    packing, words = layout.packing, []
    for bits, offset, _ in packing.planes:
        field = ((code >> jnp.uint32(offset)) & jnp.uint32(2**bits - 1)).reshape(
            *lead, packing.tiles, 32 // bits, packing.tile * bits // 32, width
        )
        shift = jnp.arange(0, 32, bits, dtype=jnp.uint32).reshape(*(1,) * (len(lead) + 1), -1, 1, 1)
        words.append(jnp.sum(field << shift, axis=-3, dtype=jnp.uint32))
    return jnp.concatenate(words, axis=-2).reshape(*lead, -1, width)


def rounded(x: jax.Array, keep: jax.Array | None, layout: AppendLayout, dtype: jnp.dtype) -> Codes:
    """A block alone, without the axis C."""
    side, group = layout.side, layout.side.group
    *lead, tokens, width = x.shape
    by_token = side.axis == "token"
    shape = (*lead, tokens, width // group, group) if by_token else (*lead, tokens // group, group, width)
    axis = -1 if by_token else -2
    value = x.astype(jnp.float32)
    counts = True if keep is None else jnp.broadcast_to((keep != 0)[:, None, :, None], x.shape)

    def over(reduce, a, other):
        return reduce(jnp.where(counts, a, jnp.asarray(other, a.dtype)).reshape(shape), axis=axis, keepdims=True)

    low, high = over(jnp.min, value, jnp.inf), over(jnp.max, value, -jnp.inf)
    peak = jax.lax.bitcast_convert_type(over(jnp.max, magnitude(value), 0), jnp.float32)
    scale, low = rounding.statistics(low, high, peak, side, dtype)
    code = rounding.codes(value.reshape(shape), scale, low, side).reshape(x.shape)
    kept = [None if a is None else jnp.squeeze(a, axis).astype(dtype) for a in (scale, low)]
    return Codes(packed(code, layout), kept[0], kept[1])  # pyright: ignore[reportArgumentType]


def kv_append_xla(held: Codes, x: jax.Array, at: jax.Array, keep: jax.Array | None, layout: AppendLayout) -> Codes:
    """The cache with the block in its place."""
    block = rounded(x, keep, layout, held.scale.dtype)
    at = jnp.clip(at, 0, held.codes.shape[0] - 1)
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new, at, axis=0), held, block)
