"""Waves in a square of uneven speed, by finite elements: ``u_tt = ∇·(c²∇u) + f``.

Bilinear square elements of constant speed, mass lumped to the nodes, central differences in time. An element's
stiffness is ``c²/6`` times a circulant matrix with eigenvalues 0, 4, 6 and 6, and a quarter of ``h²`` sits at each of
its nodes, so no eigenvalue of ``M⁻¹K`` exceeds ``4 max c² / h²`` and steps up to ``h / max c`` are stable, whatever the
speeds and whether the edge is held or free.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Boundary = Literal["held", "free"]


def stiffness(u: jax.Array, c2: jax.Array) -> jax.Array:
    """``K u``.

    Args:
      u: ``[..., n, n]`` at the nodes.
      c2: ``[..., n - 1, n - 1]``, squared speed of the elements.
    """
    corners = [u[..., :-1, :-1], u[..., 1:, :-1], u[..., 1:, 1:], u[..., :-1, 1:]]
    pads = [((0, 1), (0, 1)), ((1, 0), (0, 1)), ((1, 0), (1, 0)), ((0, 1), (1, 0))]
    total = jnp.zeros_like(u)
    for i, pad in enumerate(pads):
        own, next_, far, last = (corners[(i + j) % 4] for j in range(4))
        force = c2 / 6 * (4 * own - next_ - 2 * far - last)
        total += jnp.pad(force, [(0, 0)] * (force.ndim - 2) + list(pad))
    return total


def lumped_mass(nodes: int) -> np.ndarray:
    """Mass at each node of the unit square, ``[n, n]``; the sum is 1."""
    edge = np.full(nodes, 1.0 / (nodes - 1))
    edge[[0, -1]] /= 2
    return edge[:, None] * edge[None]


def simulate(
    u0: jax.Array,
    v0: jax.Array,
    c2: jax.Array,
    *,
    dt: float,
    steps: int,
    force: jax.Array | None = None,
    signal: jax.Array | None = None,
    boundary: Boundary = "held",
) -> jax.Array:
    """Fields at all times.

    Args:
      u0, v0: ``[..., n, n]``, displacement and velocity at the start; leading axes are simulations.
      c2: ``[..., n - 1, n - 1]``, squared speed of each element, > 0.
      dt: step in time; the square has side 1.
      steps: number of steps.
      force, signal: a source ``force[..., n, n] * signal[steps]``, both or neither.
      boundary: "held" at zero or "free".

    Returns:
      ``[steps + 1, ..., n, n]``.

    Raises:
      ValueError: shapes that do not fit, a field or speed that is not finite, a speed that is not positive, or a step
        above the stability bound.
    """
    nodes = u0.shape[-1]
    if u0.ndim < 2 or nodes < 3 or u0.shape[-2] != nodes or v0.shape != u0.shape:
        raise ValueError(f"u0 and v0 must be [..., n, n] with n >= 3, got {u0.shape} and {v0.shape}")
    if c2.shape != (*u0.shape[:-2], nodes - 1, nodes - 1):
        raise ValueError(f"c2 must be {(*u0.shape[:-2], nodes - 1, nodes - 1)}, got {c2.shape}")
    if boundary not in ("held", "free"):
        raise ValueError(f"boundary must be 'held' or 'free', got {boundary!r}")
    if (force is None) != (signal is None) or (signal is not None and signal.shape != (steps,)):
        raise ValueError(f"force and signal [{steps}] go together")
    for name, field in (("u0", u0), ("v0", v0), ("c2", c2)):
        if not bool(jnp.all(jnp.isfinite(field))):
            raise ValueError(f"{name} has NaN or infinite entries")
    if not bool(jnp.all(c2 > 0)):
        raise ValueError(f"c2 must be > 0 everywhere, got {float(jnp.min(c2))}")
    bound = 1 / (nodes - 1) / float(jnp.sqrt(jnp.max(c2)))
    if not 0 < dt <= bound * (1 + 1e-6):
        raise ValueError(f"dt must be in (0, {bound:.6g}], the stability bound h / max c, got {dt}")
    force = jnp.zeros_like(u0) if force is None else jnp.broadcast_to(force, u0.shape)
    signal = jnp.zeros((steps,), u0.dtype) if signal is None else signal
    return leapfrog(u0, v0, c2, force, signal, jnp.asarray(dt, u0.dtype), boundary=boundary)


@functools.partial(jax.jit, static_argnames="boundary")
def leapfrog(u0, v0, c2, force, signal, dt, *, boundary):
    """:func:`simulate` without its checks."""
    nodes = u0.shape[-1]
    inside = np.zeros((nodes, nodes), bool)
    inside[1:-1, 1:-1] = True
    lead = (1,) * (u0.ndim - 2)
    free = jnp.ones(u0.shape[-2:], u0.dtype) if boundary == "free" else jnp.asarray(inside, u0.dtype)
    weight = (free / jnp.asarray(lumped_mass(nodes), u0.dtype)).reshape(*lead, nodes, nodes)
    free = free.reshape(*lead, nodes, nodes)

    def acceleration(u, pulse):
        return free * force * pulse - weight * stiffness(u, c2)

    first = free * u0
    # The step before the first, by Taylor's series, so that every step is a turn of the same loop.
    before = first - dt * free * v0 + dt**2 / 2 * acceleration(first, signal[0])

    def step(state, pulse):
        before, now = state
        after = 2 * now - before + dt**2 * acceleration(now, pulse)
        return (now, after), after

    _, later = jax.lax.scan(step, (before, first), signal)
    return jnp.concatenate([first[None], later])


def energy(fields: jax.Array, c2: jax.Array, dt: float) -> jax.Array:
    """The energy that central differences conserve between each pair of steps, ``[steps, ...]``."""
    speed = (fields[1:] - fields[:-1]) / dt
    mass = jnp.asarray(lumped_mass(fields.shape[-1]), fields.dtype).reshape((1,) * (fields.ndim - 2) + speed.shape[-2:])
    kinetic = jnp.sum(mass * speed**2, axis=(-2, -1))
    return (kinetic + jnp.sum(fields[1:] * stiffness(fields[:-1], c2[None]), axis=(-2, -1))) / 2
