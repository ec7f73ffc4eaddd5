"""The arithmetic of a step, written once for the kernel and for the plain formula."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper
from pallas_kernels.quantize_pack.layout import TINY


class Step(NamedTuple):
    """Fresh moments and the direction of a step, float32."""

    m: jax.Array
    v: jax.Array
    direction: jax.Array


def step(g: jax.Array, m: jax.Array, v: jax.Array, hyper: Hyper, rests: tuple, layout: AdamLayout) -> Step:
    """Adam's step from decoded moments; ``rests`` are ``1 - b1`` and ``1 - b2``."""
    finite = None
    if layout.skip_nonfinite:
        finite = jnp.abs(g) < jnp.float32(jnp.inf)
        g = jnp.where(finite, g, 0.0)
    m = rests[0] * g + hyper.b1 * m
    v = rests[1] * (g * g) + hyper.b2 * v
    direction = m / hyper.correction1 / (jnp.sqrt(v / hyper.correction2 + hyper.eps_root) + hyper.eps)
    if finite is None:
        return Step(m, v, direction)
    return Step(*(jnp.where(finite, a, 0.0) for a in (m, v, direction)))


def moved(p: jax.Array, direction: jax.Array, hyper: Hyper, layout: AdamLayout, g: jax.Array) -> jax.Array:
    """The parameter after the step, float32: ``p - rate (d + decay p)``."""
    update = hyper.rate * (direction + hyper.decay * p)
    if layout.skip_nonfinite:
        update = jnp.where(jnp.abs(g) < jnp.float32(jnp.inf), update, 0.0)
    return p - update


def scale_of(largest: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The scale that is kept, what to divide by, and whether the block has values: denormals are flushed to 0."""
    usable = ~(largest < jnp.float32(TINY))
    return jnp.where(usable, largest, 0.0), jnp.where(usable, largest, 1.0), usable


def signed(code: jax.Array, y: jax.Array, usable: jax.Array, zero: int) -> jax.Array:
    """Codes in which negative values are not coded as 0."""
    return jnp.where((y < 0) & (code == jnp.int32(zero)) & usable, jnp.int32(zero - 1), code)
