"""The best levels of weighted one-dimensional k-means, by dynamic programming: an oracle, and for small matrices."""

import jax
import jax.numpy as jnp

from compressjax.numerics.kmeans import Fit


def kmeans_exact(values: jax.Array, weight: jax.Array, count: int) -> Fit:
    """Levels with the least ``sum weight * (value - nearest level)²`` of all.

    In one dimension the cells of an optimum are runs of the sorted values, so with ``D[m, j]`` the least loss of the
    first ``j`` values with ``m`` levels, ``D[m, j] = min_i D[m-1, i] + cost(i, j)``. ``O(K n²)`` work per output and
    ``n²`` numbers of memory, one output at a time.

    Args:
      values: float32 ``[n, out]``; one table per output.
      weight: non-negative, broadcast against ``values``; an output without any weight counts all its values alike.
      count: number of levels, >= 1.

    Returns:
      ``Fit`` with ascending levels; levels that no value needs repeat their neighbour.
    """
    weight = jnp.broadcast_to(weight, values.shape)
    levels, loss = jax.lax.map(lambda args: _one(args[0], args[1], count), (values.T, weight.T))
    return Fit(levels.T, loss)


def _one(values, weight, count):
    n = values.shape[0]
    total = jnp.sum(weight)
    weight = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 1 / n)
    mean = jnp.sum(weight * values)
    order = jnp.argsort(values)
    x, f = (values - mean)[order], weight[order]
    mass, moment, square = (jnp.pad(jnp.cumsum(a), (1, 0)) for a in (f, f * x, f * x * x))
    cell_mass = mass[None, :] - mass[:, None]
    cell_moment = moment[None, :] - moment[:, None]
    spread = square[None, :] - square[:, None] - cell_moment**2 / jnp.where(cell_mass > 0, cell_mass, 1)
    place = jnp.arange(n + 1)
    # [i, j]: loss of one level for values i..j-1; an empty cell costs nothing, a reversed one is no cell.
    cost = jnp.where(place[:, None] > place[None, :], jnp.inf, jnp.where(cell_mass > 0, jnp.maximum(spread, 0), 0))

    def add_level(least, _):
        whole = least[:, None] + cost
        return jnp.min(whole, axis=0), jnp.argmin(whole, axis=0).astype(jnp.int32)

    nothing = jnp.where(place == 0, 0.0, jnp.inf)
    least, origin = jax.lax.scan(add_level, nothing, None, length=count)

    def back(stop, came_from):
        start = came_from[stop]
        return start, (start, stop)

    _, (start, stop) = jax.lax.scan(back, jnp.int32(n), origin, reverse=True)
    inside = (place[None, :n] >= start[:, None]) & (place[None, :n] < stop[:, None])
    heavy = jnp.sum(jnp.where(inside, f[None], 0), axis=1)
    level = jnp.sum(jnp.where(inside, (f * x)[None], 0), axis=1) / jnp.where(heavy > 0, heavy, 1)
    # Cells without weight repeat the level below them, or the first real one above.
    real = heavy > 0
    level = jax.lax.cummax(jnp.where(real, level, -jnp.inf))
    level = jnp.where(jnp.isinf(level), jnp.min(jnp.where(jnp.isinf(level), jnp.inf, level)), level)
    return Fit(level + mean, least[n] * jnp.where(total > 0, total, n))
