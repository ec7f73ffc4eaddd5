"""``kv_compress``: a plain cache becomes a compressed one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.kvcache.cache import KVCache, Layout
from compressjax.kvcache.protocol import KVSpec
from compressjax.kvcache.rules import Rules, segments_by
from compressjax.models.config import RopeScaling


def kv_compress(
    cache: Mapping[str, Any],
    cfg: Rules,
    *,
    q_heads: int | None = None,
    max_len: int | None = None,
    queries: jax.Array | None = None,
    fixed: tuple = (),
    dtype: str | None = None,
    window: int | None = None,
    rope: tuple[float, RopeScaling | None] | None = None,
) -> KVCache:
    """Compresses the keys and values of a plain cache, at any time and for any number of layers.

    Args:
      cache: ``{"k": [L, B, S, K, d], "v": [L, B, S, K, e]}``, keys rotated, with "mask" bool ``[B, S]`` of real tokens
        (all by default) and "length" slots in use (all by default), as `models.prefill` makes it. Without the axis L
        it is one layer.
      cfg: a codec, None, or codecs by layers and heads, see `kvcache.rules`.
      q_heads: query heads; by default as many as key heads.
      max_len: tokens the result can ever hold; by default S.
      queries: ``[L, B, S, H, d]``, the rotated queries of the same tokens, for codecs that score tokens by attention.
      fixed: what the codecs need to be given, such as `Projections` stacked by layer; one entry a segment.
      dtype: of what is kept exactly; by default that of the cache.
      window, rope: sliding window, and rotary base and stretch, where the model has them.

    Returns:
      A `KVCache`, which `kvcache.decode_step` continues.

    Raises:
      ValueError: shapes that do not fit, an empty cache, a codec that lacks what it needs.
      TypeError: mixed or integer dtypes.
    """
    k, v = (jnp.asarray(cache[name]) for name in ("k", "v"))
    if k.dtype != v.dtype or not jnp.issubdtype(k.dtype, jnp.floating):
        raise TypeError(f"keys and values must have one floating-point dtype, got {k.dtype} and {v.dtype}")
    if k.ndim == 4:
        k, v = k[None], v[None]
        queries = None if queries is None else queries[None]
    if k.ndim != 5 or k.shape[:4] != v.shape[:4]:
        raise ValueError(f"keys and values must be [L, B, S, K, width] of equal sizes, got {k.shape} and {v.shape}")
    layers, batch, slots, kv_heads, width = k.shape
    length = cache.get("length", slots)
    try:
        length = int(length)
    except jax.errors.ConcretizationTypeError:
        raise ValueError("kv_compress needs a concrete length, for it sets sizes: call it outside jit") from None
    if not 0 < length <= slots:
        raise ValueError(f"the cache is empty or too long: length must be in 1..{slots}, got {length}")
    heads = kv_heads if q_heads is None else q_heads
    if queries is not None:
        heads = queries.shape[3]
        if queries.shape != (layers, batch, slots, heads, width):
            raise ValueError(f"queries must be [L, B, S, H, d] like the keys {k.shape}, got {queries.shape}")
    spec = KVSpec(
        layers=layers,
        batch=batch,
        q_heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        value_dim=v.shape[4],
        prompt=length,
        max_len=max(slots, length) if max_len is None else max_len,
        dtype=dtype or str(k.dtype),
        window=window,
        rope=rope,
    )
    layout = Layout(spec, segments_by(cfg, spec))
    for codec, _, _ in layout.segments:
        if "q" in codec.needs and queries is None:
            raise ValueError(
                f"{type(codec).__name__} scores tokens by attention: pass queries [L, B, S, H, d], or let Generator "
                "read the prompt"
            )
    mask = jnp.asarray(cache["mask"]) if "mask" in cache else jnp.ones((batch, slots), bool)
    held = (None if x is None else x[:, :, :length] for x in (k, v, queries))
    return _compress(layout, *held, mask[:, :length], layout.given(fixed))


@functools.partial(jax.jit, static_argnums=0)
def _compress(layout, k, v, queries, mask, given):
    spec, states = layout.spec, []
    scaled = None if queries is None else queries * spec.head_dim**-0.5
    for index, (codec, start, stop) in enumerate(layout.segments):

        def units(x, codec=codec, start=start, stop=stop):
            x = x[start:stop].reshape((stop - start) // codec.unit, codec.unit, *x.shape[1:])
            return jnp.moveaxis(x, 3, 4)

        q = None
        if "q" in codec.needs:
            q = units(scaled)
            n, u, b, _, t, d = q.shape
            q = q.reshape(n, u, b, spec.kv_heads, spec.groups, t, d)
        parts = (units(k), units(v), q, given[index])
        states.append(jax.lax.map(lambda x, c=codec: c.prefill(spec, x[0], x[1], mask, x[2], x[3]), parts))
    return KVCache(
        states=tuple(states),
        real=jnp.pad(mask, ((0, 0), (0, spec.max_len - spec.prompt))),
        frozen=jnp.int32(layout.whole),
        hot=jnp.int32(spec.prompt - layout.whole),
        layout=layout,
    )
