"""The step in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.blockwise_adam import arithmetic
from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper, Moments


def blockwise_adam_xla(
    g: jax.Array, moments: Moments, numbers: jax.Array, tables: jax.Array, p: jax.Array | None, layout: AdamLayout
) -> tuple[jax.Array, Moments]:
    """The step of one array: its direction in float32, or the moved parameter, and the moments coded again."""
    rows, last, width = layout.rows(g.shape)
    count = -(-last // width)

    def blocks(a):
        wide = a.reshape(rows, last)
        return jnp.pad(wide, ((0, 0), (0, count * width - last))).reshape(rows, count, width)

    def whole(a):
        return a.reshape(rows, count * width)[:, :last].reshape(g.shape)

    def decoded(codes, scale, table):
        found = jnp.take(tables[table], blocks(codes).astype(jnp.int32), axis=0)
        return found * scale.reshape(rows, count, 1)

    def coded(value, table, zero):
        # What stands in the padding of a short block must not widen it.
        value = blocks(whole(value))
        kept, divisor, usable = arithmetic.scale_of(jnp.max(jnp.abs(value), axis=2))
        y = value / divisor[..., None]
        code = jnp.searchsorted(tables[table][:255], y, side="left", method="scan_unrolled").astype(jnp.int32)
        if layout.keep_sign and zero > 0:
            code = arithmetic.signed(code, y, usable[..., None], zero)
        return whole(code).astype(jnp.uint8), kept.reshape(layout.scale_shape(g.shape))

    hyper, rests = Hyper(*numbers[:8]), (numbers[8], numbers[9])
    grad = blocks(g.astype(jnp.float32))
    m, v = decoded(moments.m_codes, moments.m_scale, 0), decoded(moments.v_codes, moments.v_scale, 2)
    fresh = arithmetic.step(grad, m, v, hyper, rests, layout)
    out = whole(fresh.direction)
    if p is not None:
        out = arithmetic.moved(p.astype(jnp.float32), out, hyper, layout, g.astype(jnp.float32)).astype(p.dtype)
    return out, Moments(*coded(fresh.m, 1, layout.zero("m_map")), *coded(fresh.v, 3, layout.zero("v_map")))
