"""The arithmetic of a block, written once for the kernel and for the plain formula."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends.pallas_triton import exact_float, exact_zero, nearest_code
from pallas_kernels.quantize_pack.layout import TINY, PackLayout


def statistics(low: Any, high: Any, layout: PackLayout) -> tuple[jax.Array, jax.Array | None]:
    """What is kept of each block, float32: ``scale`` and ``low``.

    Args:
      low: smallest value of the block for "minmax"; anything otherwise.
      high: largest value, largest magnitude or sum of squares, by kind.
      layout: the layout.
    """
    if layout.kind == "norm":
        norm = jnp.sqrt(high)
        return layout.kept(jnp.where(norm < jnp.float32(TINY * layout.steps), 0.0, norm)), None
    if layout.kind == "minmax":
        low = layout.kept(low)
        high = high - low
    unit = layout.kept(high / jnp.float32(layout.steps))
    # Denormals are flushed on most devices, so dividing by one is dividing by zero. NaN is below nothing and stays.
    return jnp.where(unit < jnp.float32(TINY), 0.0, unit), low if layout.kind == "minmax" else None


def inverse_unit(scale: jax.Array, layout: PackLayout) -> jax.Array:
    """What values are multiplied with to count in units; 0 where the unit is."""
    top = jnp.float32(layout.steps if layout.kind == "norm" else 1)
    return jnp.where(scale > 0, top / jnp.where(scale > 0, scale, 1.0), 0.0)


def codes(
    x: jax.Array, inverse: jax.Array, low: jax.Array | None, noise: jax.Array | None, layout: PackLayout
) -> jax.Array:
    """Codes of float32 values, uint32."""
    y = (x if low is None else x - low) * inverse
    if layout.zero:
        y = y + jnp.float32(layout.zero)
    if noise is not None:
        y = y + noise
    least, largest = layout.extremes
    y = lax.clamp(jnp.float32(least), y, jnp.float32(largest))
    # A word holds fields of several blocks, and NaN has more bits than a field.
    return nearest_code(jnp.where(jnp.isnan(y), jnp.float32(least), y))


def values(code: jax.Array, unit: jax.Array, low: jax.Array | None, layout: PackLayout) -> jax.Array:
    """Values of codes, float32."""
    level = (exact_float(code) - exact_zero(layout.zero)) * unit
    return level if low is None else low + level


def unit_of(scale: jax.Array, layout: PackLayout) -> jax.Array:
    """The unit from what was kept, float32."""
    wide = scale.astype(jnp.float32)
    return wide / jnp.float32(layout.steps) if layout.kind == "norm" else wide
