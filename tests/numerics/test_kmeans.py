"""One-dimensional k-means: assignments are nearest, levels are means, and the loss beats a uniform grid's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.numerics import kmeans


def loss(values, weight, levels):
    near = kmeans.pick(levels, kmeans.assign(values, levels))
    return jnp.sum(weight * (near - values) ** 2, axis=-2)


def test_assign_is_nearest():
    values = jax.random.normal(jax.random.key(0), (2, 50, 3))
    levels = jnp.sort(jax.random.normal(jax.random.key(1), (2, 5, 3)), axis=-2)
    brute = jnp.argmin(jnp.abs(values[..., :, None, :] - levels[..., None, :, :]), axis=-2)
    np.testing.assert_array_equal(kmeans.assign(values, levels), brute)


def test_fixed_point_levels_are_weighted_means():
    values = jax.random.normal(jax.random.key(0), (200, 4))
    weight = jax.random.uniform(jax.random.key(1), (200, 1)) + 0.1
    levels = kmeans.kmeans_1d(values, weight, 4, iterations=200)
    codes = kmeans.assign(values, levels)
    for k in range(4):
        mine = jnp.where(codes == k, weight, 0)
        np.testing.assert_allclose(levels[k], jnp.sum(mine * values, 0) / jnp.sum(mine, 0), rtol=1e-4)


def test_close_to_the_optimum_on_tiny_input():
    rng = np.random.default_rng(0)
    for _ in range(5):
        v = np.sort(rng.normal(size=8)).astype(np.float32)
        best = min(
            sum(((part - part.mean()) ** 2).sum() for part in np.split(v, cuts))
            for cuts in itertools.combinations(range(1, 8), 2)
        )
        levels = kmeans.kmeans_1d(jnp.asarray(v)[:, None], jnp.ones((8, 1)), 3)
        assert float(loss(jnp.asarray(v)[:, None], jnp.ones((8, 1)), levels)[0]) <= 2.0 * best + 1e-6


def test_zero_weight_leaves_values_out():
    values = jnp.asarray([[0.0], [1.0], [100.0]])
    levels = kmeans.kmeans_1d(values, jnp.asarray([[1.0], [1.0], [0.0]]), 2, iterations=50)
    assert float(loss(values, jnp.asarray([[1.0], [1.0], [0.0]]), levels)[0]) < 1e-6


def test_beats_the_uniform_grid_on_heavy_tails():
    values = jax.random.t(jax.random.key(0), 4.0, (512, 8))
    low, high = values.min(0, keepdims=True), values.max(0, keepdims=True)
    uniform = low + (high - low) * jnp.linspace(0, 1, 8)[:, None]
    one = jnp.ones((512, 1))
    assert bool(jnp.all(loss(values, one, kmeans.kmeans_1d(values, one, 8)) < loss(values, one, uniform)))
