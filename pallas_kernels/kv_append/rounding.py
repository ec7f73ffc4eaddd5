"""The arithmetic of a group, written once for the kernel and for the plain formula."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.kv_attention.layout import Side

# 1.5 * 2**23: added to a float below 2**22 in magnitude it leaves the integer nearest to it in the low bits.
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000


def statistics(
    low: jax.Array, high: jax.Array, peak: jax.Array, side: Side, dtype: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Scale and low end of groups, float32 as they come back from ``dtype``.

    Args:
      low, high: least and largest of the values that count; ``inf`` and ``-inf`` where none does; not read for ``sym``.
      peak: largest magnitude of those values, NaN where one is; 0 where none counts.
      side: how they are rounded.
      dtype: of what is kept, 16 bits.
    """
    info, lost = jnp.finfo(dtype), jnp.isnan(peak)
    least, largest = (jnp.float32(sign * float(info.max)) for sign in (-1, 1))

    def kept(a):
        return jnp.where(lost, jnp.float32(jnp.nan), a.astype(dtype).astype(jnp.float32))

    def scaled(span, steps):
        # A product with the inverse, as XLA divides by a constant.
        scale = jnp.where(span == 0, 1.0, span) * jnp.float32(1 / steps)
        return kept(lax.clamp(jnp.float32(float(info.smallest_subnormal)), scale, largest))

    if side.sym:
        return scaled(peak, 2 ** (side.bits - 1) - 1), None
    none = high < low
    low = kept(lax.clamp(least, jnp.where(none, 0.0, low), largest))
    return scaled(jnp.maximum(jnp.where(none, 0.0, high) - low, 0.0), 2**side.bits - 1), low


def codes(x: jax.Array, scale: jax.Array, low: jax.Array | None, side: Side) -> jax.Array:
    """Codes of float32 values, uint32."""
    if low is None:
        least, largest, middle = 1 - 2 ** (side.bits - 1), 2 ** (side.bits - 1) - 1, 2 ** (side.bits - 1)
        y = x / scale
    else:
        least, largest, middle = 0, 2**side.bits - 1, 0
        y = (x - low) / scale
    bits = lax.bitcast_convert_type(lax.clamp(jnp.float32(least), y, jnp.float32(largest)) + _MAGIC, jnp.uint32)
    return jnp.where(jnp.isnan(y), jnp.uint32(0), bits - jnp.uint32(_MAGIC_BITS - middle))
