"""The choice in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.topk_pack.layout import Largest, TopKLayout


def topk_pack_xla(x: jax.Array, layout: TopKLayout) -> Largest:
    """Values, places, and what is left."""
    chunks = layout.chunks(x.shape[0])
    rows = jnp.pad(x, (0, chunks * layout.chunk - x.shape[0])).reshape(chunks, layout.chunk)
    places = jnp.sort(jax.lax.top_k(jnp.abs(rows), layout.k)[1], axis=1)
    values = jnp.take_along_axis(rows, places, axis=1)
    residual = None
    if layout.residual:
        left = rows.at[jnp.arange(chunks)[:, None], places].set(jnp.zeros((), x.dtype))
        residual = left.reshape(-1)[: x.shape[0]]
    return Largest(values, places.astype(jnp.uint16), residual)
