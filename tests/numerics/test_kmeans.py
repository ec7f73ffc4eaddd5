"""One-dimensional k-means: assignments are nearest, levels are means, and the loss beats a uniform grid's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics import kmeans
from compressjax.numerics.kmeans_exact import kmeans_exact


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


restarts = jax.jit(kmeans.kmeans_restarts, static_argnames=("count", "iterations", "starts"))


def heavy_tailed(n=60, cols=5, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.gamma(0.3, size=(n, cols)).astype(np.float32)
    return jnp.asarray(rng.standard_t(3, (n, cols)), jnp.float32), jnp.asarray(weight)


def test_restarts_never_fall_behind_a_start_or_the_optimum():
    values, weight = heavy_tailed(12, 8)
    alone = [restarts(values, weight, 3, starts=(s,)).loss for s in kmeans.STARTS]
    best = restarts(values, weight, 3, starts=kmeans.STARTS + ("kmeans++",) * 5)
    exact = kmeans_exact(values, weight, 3).loss
    assert bool(jnp.all(best.loss <= jnp.minimum(alone[0], alone[1]) * 1.00001))
    assert all(bool(jnp.all(loss >= exact * 0.999)) for loss in (*alone, best.loss))
    np.testing.assert_allclose(best.loss, exact, rtol=1e-3)


def test_restarts_improve_with_every_step_and_report_their_loss():
    values, weight = heavy_tailed()
    last = jnp.full((5,), jnp.inf)
    for iterations in (1, 2, 5, 30):
        fit = restarts(values, weight, 4, iterations=iterations, starts=("range",))
        assert bool(jnp.all(fit.loss <= last * 1.00001))
        np.testing.assert_allclose(fit.loss, loss(values, weight, fit.levels), rtol=1e-4)
        assert bool(jnp.all(fit.levels[1:] >= fit.levels[:-1]))
        last = fit.loss
    codes = kmeans.assign(values, fit.levels)
    for k in range(4):
        mine = jnp.where(codes == k, weight, 0)
        np.testing.assert_allclose(fit.levels[k], jnp.sum(mine * values, 0) / jnp.sum(mine, 0), rtol=1e-3, atol=1e-4)


def test_a_whole_weight_is_so_many_repetitions():
    values, _ = heavy_tailed(20, 3)
    times = np.random.default_rng(1).integers(1, 4, 20)
    one = restarts(values, jnp.asarray(times, jnp.float32)[:, None], 4, starts=("quantile", "range"))
    repeated = jnp.repeat(values, jnp.asarray(times), axis=0)
    other = restarts(repeated, jnp.ones((1, 3)), 4, starts=("quantile", "range"))
    np.testing.assert_allclose(one.levels, other.levels, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-4)


def test_a_value_without_weight_moves_nothing():
    values, weight = heavy_tailed(20, 3)
    weight = weight.at[4].set(0)
    one = restarts(values, weight, 4, starts=("quantile", "range"))
    other = restarts(values.at[4].set(1e3), weight, 4, starts=("quantile", "range"))
    np.testing.assert_array_equal(one.levels, other.levels)


def test_restarts_refuse_unknown_starts():
    values, weight = heavy_tailed(8, 1)
    for starts in ((), ("middle",)):
        with pytest.raises(ValueError, match="starts must be one or more of"):
            restarts(values, weight, 2, starts=starts)
