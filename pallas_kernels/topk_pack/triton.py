"""The choice through Pallas' Triton backend: no sort, but the bits of the smallest magnitude that is kept, one by one.

Magnitudes are compared as the integers of their bits. From the highest bit down, a bit of the threshold is set when at
least ``k`` entries still reach it: one comparison and one count of the chunk, which never leaves the registers. One
running sum then says which of the entries equal to the threshold come first, and where each kept entry goes.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.topk_pack.layout import Largest, TopKLayout

_LOWEST_BIT = {"bfloat16": 16, "float16": 13, "float32": 0}
"""Lowest bit that a number of a dtype can have set once it is float32, subnormal ones included."""


def topk_pack_triton(x: jax.Array, layout: TopKLayout, config: BlockConfig, *, interpret: bool = False) -> Largest:
    """Values, places, and what is left."""
    chunk, k, size = layout.chunk, layout.k, x.shape[0]
    chunks = layout.chunks(size)
    wide = 1 << (chunk - 1).bit_length()
    many = max(1, config.values // wide)
    lowest = _LOWEST_BIT[x.dtype.name]

    def kernel(x_ref, values_ref, places_ref, *rest_ref):
        at = triton.program() * jnp.int32(many) + triton.iota(many)
        lane = triton.iota(wide)[None, :]
        place = at[:, None] * jnp.int32(chunk) + lane
        inside = None if size % (chunk * many) == 0 and wide == chunk else place < jnp.int32(size)
        if wide != chunk:
            within = lane < jnp.int32(chunk)
            inside = within if inside is None else inside & within
        x = triton.load(x_ref, place, mask=inside)
        bits = lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.int32)
        if wide != chunk:  # lanes of no entry are below every threshold; entries beyond the end are zeros
            bits = jnp.where(lane < jnp.int32(chunk), bits, jnp.int32(-1))

        def set_bit(nth, threshold):
            higher = threshold | (jnp.int32(1) << (jnp.int32(30) - nth))
            reach = jnp.sum((bits >= higher[:, None]).astype(jnp.int32), axis=1)
            return jnp.where(reach >= jnp.int32(k), higher, threshold)

        threshold = lax.fori_loop(0, 31 - lowest, set_bit, jnp.zeros(many, jnp.int32))[:, None]
        above = (bits > threshold).astype(jnp.int32)
        equal = (bits == threshold).astype(jnp.int32)
        both = lax.cumsum(above + (equal << jnp.int32(16)), axis=1)
        needed = (jnp.int32(k) - jnp.sum(above, axis=1))[:, None]
        nth_above, nth_equal = both & jnp.int32(0xFFFF), both >> jnp.int32(16)
        kept = (above == 1) | ((equal == 1) & (nth_equal <= needed))
        to = at[:, None] * jnp.int32(k) + nth_above + jnp.minimum(nth_equal, needed) - jnp.int32(1)
        exists = kept if chunks % many == 0 else kept & (at < jnp.int32(chunks))[:, None]
        # A place beyond the end for the others: the interpreter writes masked entries back where they point.
        to = jnp.where(exists, to, jnp.int32(chunks * k))
        triton.store(values_ref, x, to, mask=exists)
        triton.store(places_ref, jnp.broadcast_to(lane, to.shape), to, mask=exists)
        if layout.residual:
            triton.store(rest_ref[0], jnp.where(kept, jnp.zeros((), x.dtype), x), place, mask=inside)

    kinds = [(chunks * k, x.dtype), (chunks * k, jnp.uint16), *([(size, x.dtype)] if layout.residual else [])]
    out = triton.launch(
        kernel,
        blocks=math.ceil(chunks / many),
        out_shape=[triton.result((length,), dtype, x) for length, dtype in kinds],
        name="topk_pack_residual" if layout.residual else "topk_pack",
        warps=config.warps,
        stages=1,
        interpret=interpret,
    )(x)
    return Largest(out[0].reshape(chunks, k), out[1].reshape(chunks, k), out[2] if layout.residual else None)
