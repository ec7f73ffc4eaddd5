"""Random packed keys and values that a kernel can be tried on."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_attention import Codes, Fit, KVLayout, Past, Side


def random_side(rng, lay: KVLayout, side: Side, lead, rank, dtype):
    """Codes that use all bits, and a low-rank part."""
    packing, shape = lay.packing(side), (*lead, *lay.scale_shape(side))
    codes = jnp.asarray(rng.integers(0, 2**32, (*lead, packing.tiles * packing.words, side.width), np.uint32))
    scale = jnp.asarray(rng.uniform(0.5, 1.5, shape) * 2 / 2**side.bits, dtype)
    low = None if side.sym else jnp.asarray(rng.normal(size=shape) - 1, dtype)
    if not rank:
        return Codes(codes, scale, low), None
    a, b = (rng.normal(size=(*lead, length, rank)) * 0.5 for length in (lay.tokens, side.width))
    return Codes(codes, scale, low), Fit(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def random_past(lay: KVLayout, blocks, batch, heads, ranks=(0, 0), seed=0, dtype="float16") -> Past:
    """Blocks of a layout."""
    rng, lead = np.random.default_rng(seed), (blocks, batch, heads)
    k, k_fit = random_side(rng, lay, lay.key, lead, ranks[0], dtype)
    v, v_fit = random_side(rng, lay, lay.value, lead, ranks[1], dtype)
    return Past(k, v, k_fit, v_fit)


def random_queries(lay: KVLayout, batch, heads, groups, dtype):
    """Queries ``[B, K, G, d]``, scaled."""
    width = lay.key.width
    draw = np.random.default_rng(5).normal(size=(batch, heads, groups, width)) * width**-0.5
    return jnp.asarray(draw, dtype)
