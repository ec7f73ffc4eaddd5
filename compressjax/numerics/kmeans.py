"""One-dimensional weighted k-means over many rows at once."""

import jax
import jax.numpy as jnp


def assign(values: jax.Array, levels: jax.Array) -> jax.Array:
    """Index of the nearest level.

    Args:
      values: ``[..., n, out]``.
      levels: ascending ``[..., K, out]``.

    Returns:
      int32 ``[..., n, out]``; halves go to the lower level.
    """
    middles = (levels[..., 1:, :] + levels[..., :-1, :]) / 2
    return jnp.sum(values[..., :, None, :] > middles[..., None, :, :], axis=-2, dtype=jnp.int32)


def pick(levels: jax.Array, codes: jax.Array) -> jax.Array:
    """``levels[codes]`` along the second-last axis: ``[..., K, out]`` and ``[..., n, out]`` to ``[..., n, out]``."""
    return jnp.take_along_axis(levels, codes, axis=-2)


def kmeans_1d(values: jax.Array, weight: jax.Array, count: int, iterations: int = 25) -> jax.Array:
    """Levels that locally minimise ``sum weight * (value - nearest level)²`` (Lloyd).

    Starts halfway between equal steps of the range and equal shares of the values: the first alone starves the dense
    middle, the second the tails.

    Args:
      values: float32 ``[..., n, out]``; one set of levels per leading index and output.
      weight: non-negative importance, broadcast against ``values``; zero leaves a value out.
      count: number of levels, >= 2.
      iterations: Lloyd steps.

    Returns:
      float32 ``[..., count, out]``, ascending.
    """
    n = values.shape[-2]
    weight = jnp.broadcast_to(weight, values.shape)
    mass = jnp.sum(weight, axis=-2, keepdims=True)
    mean = jnp.sum(weight * values, axis=-2, keepdims=True) / jnp.where(mass > 0, mass, 1)
    values = jnp.where(weight > 0, values, mean)
    ordered = jnp.sort(values, axis=-2)
    at = ((jnp.arange(count) * 2 + 1) * n) // (2 * count)
    shares = jnp.take(ordered, at, axis=-2)
    low, high = ordered[..., :1, :], ordered[..., -1:, :]
    fractions = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    steps = low + (high - low) * fractions.reshape((1,) * (values.ndim - 2) + (count, 1))

    def lloyd(_, levels):
        codes = assign(values, levels)
        moved = []
        for k in range(count):
            mine = jnp.where(codes == k, weight, 0)
            mass = jnp.sum(mine, axis=-2)
            mean = jnp.sum(mine * values, axis=-2) / jnp.where(mass > 0, mass, 1)
            moved.append(jnp.where(mass > 0, mean, levels[..., k, :]))
        return jnp.sort(jnp.stack(moved, axis=-2), axis=-2)

    return jax.lax.fori_loop(0, iterations, lloyd, (shares + steps) / 2)
