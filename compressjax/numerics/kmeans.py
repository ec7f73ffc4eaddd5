"""One-dimensional weighted k-means over many rows at once."""

from typing import NamedTuple

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


class Fit(NamedTuple):
    """Levels and what they leave.

    Attributes:
      levels: float32 ``[..., K, out]``, ascending.
      loss: ``sum weight * (value - nearest level)²``, ``[..., out]``.
    """

    levels: jax.Array
    loss: jax.Array


STARTS = ("quantile", "range", "kmeans++")


class _Sorted(NamedTuple):
    """Values of each row ascending, with sums of weight and of weighted value before every place."""

    values: jax.Array
    weight: jax.Array
    mass: jax.Array
    moment: jax.Array


def _in_order(values, weight):
    order = jnp.argsort(values, axis=-1)
    values, weight = jnp.take_along_axis(values, order, -1), jnp.take_along_axis(weight, order, -1)
    before = [(0, 0)] * (values.ndim - 1) + [(1, 0)]
    sums = [jnp.pad(jnp.cumsum(a, axis=-1), before) for a in (weight, weight * values)]
    return _Sorted(values, weight, *sums)


def _count_below(ordered, bounds):
    """How many of ``ordered [out, n]`` are at most ``bounds [out, m]``, int32 ``[out, m]``."""
    search = jax.vmap(lambda row, at: jnp.searchsorted(row, at, side="right"))
    return search(ordered, bounds).astype(jnp.int32)


def _lloyd_step(rows, levels):
    """Moves every level to the weighted mean of the values nearest to it; a level without any weight stays."""
    n = rows.values.shape[-1]
    cut = _count_below(rows.values, (levels[:, 1:] + levels[:, :-1]) / 2)
    edge = jnp.pad(cut, ((0, 0), (1, 0)))
    stop = jnp.pad(cut, ((0, 0), (0, 1)), constant_values=n)
    mass = jnp.take_along_axis(rows.mass, stop, 1) - jnp.take_along_axis(rows.mass, edge, 1)
    moment = jnp.take_along_axis(rows.moment, stop, 1) - jnp.take_along_axis(rows.moment, edge, 1)
    mean = moment / jnp.where(mass > 0, mass, 1)
    # Differences of long sums are inexact where a cell weighs little: no mean may leave its cell.
    low = jnp.take_along_axis(rows.values, jnp.minimum(edge, n - 1), 1)
    high = jnp.take_along_axis(rows.values, jnp.maximum(stop - 1, 0), 1)
    return jnp.where((mass > 0) & (stop > edge), jnp.clip(mean, low, high), levels)


def _start(rows, count, kind, key):
    n = rows.values.shape[-1]
    if kind == "quantile":
        at = (jnp.arange(count, dtype=jnp.float32) + 0.5)[None] / count * rows.mass[:, -1:]
        place = jax.vmap(jnp.searchsorted)(rows.mass[:, 1:], at)
        return jnp.take_along_axis(rows.values, jnp.minimum(place, n - 1), 1)
    if kind == "range":
        low, high = rows.values[:, :1], rows.values[:, -1:]
        return low + (high - low) * (jnp.arange(count, dtype=jnp.float32)[None] + 0.5) / count
    draws = jax.random.uniform(key, (count, rows.values.shape[0], 1))

    def pick_next(nearest, draw):
        chance = jnp.cumsum(rows.weight * nearest, axis=-1)
        at = jax.vmap(jnp.searchsorted)(chance, draw * chance[:, -1:])
        new = jnp.take_along_axis(rows.values, jnp.minimum(at, n - 1), 1)
        return jnp.minimum(nearest, (rows.values - new) ** 2), new[:, 0]

    one = jnp.ones_like(rows.values)
    first = pick_next(one, draws[0])
    nearest = (rows.values - first[1][:, None]) ** 2
    _, rest = jax.lax.scan(pick_next, nearest, draws[1:])
    return jnp.sort(jnp.concatenate([first[1][None], rest]).T, axis=-1)


def weighted_loss(values: jax.Array, weight: jax.Array, levels: jax.Array) -> jax.Array:
    """``sum weight * (value - nearest level)²`` over values ``[..., n, out]``, for tables ``[..., K, out]``."""
    near = pick(levels, assign(values, levels))
    return jnp.sum(weight * (near - values) ** 2, axis=-2)


def kmeans_restarts(
    values: jax.Array,
    weight: jax.Array,
    count: int,
    *,
    iterations: int = 50,
    starts: tuple[str, ...] = STARTS,
    key: jax.Array | None = None,
) -> Fit:
    """Weighted 1-D k-means from several starts, the best one per output.

    Values are sorted once; a Lloyd step then finds its cells by binary search and their means by differences of prefix
    sums, ``O(K log n)`` per output.

    Args:
      values: float32 ``[n, out]``; one table per output.
      weight: non-negative, broadcast against ``values``; zero leaves a value out, an output without any weight counts
        all its values alike.
      count: number of levels, >= 2.
      iterations: Lloyd steps of each start.
      starts: "quantile" (equal shares of weight), "range" (equal steps), "kmeans++" (each level drawn by weight and
        squared distance to those before); a name given again draws again.
      key: for "kmeans++"; None for a fixed one.

    Returns:
      :class:`Fit`; its loss never exceeds that of any start.

    Raises:
      ValueError: for an unknown start, or none.
    """
    unknown = [name for name in starts if name not in STARTS]
    if unknown or not starts:
        raise ValueError(f"starts must be one or more of {STARTS}, got {starts}")
    key = jax.random.key(0) if key is None else key
    weight = jnp.broadcast_to(weight, values.shape)
    total = jnp.sum(weight, axis=0, keepdims=True)
    weight = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 1 / values.shape[0])
    mean = jnp.sum(weight * values, axis=0, keepdims=True)
    # Centred, so that the prefix sums lose less; what has no weight must not widen the range either.
    centred = jnp.where(weight > 0, values - mean, 0)
    rows = _in_order(centred.T, weight.T)
    first = jnp.stack([_start(rows, count, kind, jax.random.fold_in(key, i)) for i, kind in enumerate(starts)])

    def settle(levels):
        levels = jax.lax.fori_loop(0, iterations, lambda _, now: _lloyd_step(rows, now), levels).T
        return levels, weighted_loss(centred, weight, levels)

    levels, loss = jax.lax.map(settle, first)
    best = jnp.argmin(loss, axis=0)
    levels = jnp.take_along_axis(levels, best[None, None], axis=0)[0]
    scale = jnp.where(total[0] > 0, total[0], values.shape[0])
    return Fit(levels + mean, jnp.min(loss, axis=0) * scale)
