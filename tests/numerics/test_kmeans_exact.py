"""The dynamic programme against every partition there is."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics import kmeans
from compressjax.numerics.kmeans_exact import kmeans_exact


def brute(values, weight, count):
    order = np.argsort(values)
    v, f = values[order].astype(np.float64), weight[order].astype(np.float64)

    def cost(cut):
        total = f[cut].sum()
        return 0.0 if total == 0 else float((f[cut] * (v[cut] - (f[cut] * v[cut]).sum() / total) ** 2).sum())

    n = len(v)
    return min(
        sum(cost(slice(a, b)) for a, b in itertools.pairwise((0, *cuts, n)))
        for cuts in itertools.combinations_with_replacement(range(n + 1), count - 1)
    )


@pytest.mark.parametrize("count", [1, 3, 4])
def test_equals_the_best_contiguous_partition(count):
    rng = np.random.default_rng(count)
    values = rng.standard_t(3, (11, 6)).astype(np.float32)
    values[:, 0] = np.round(values[:, 0])  # ties
    weight = rng.gamma(0.3, size=(11, 6)).astype(np.float32)
    weight[::3, 1] = 0
    fit = kmeans_exact(jnp.asarray(values), jnp.asarray(weight), count)
    expected = np.array([brute(values[:, o], weight[:, o], count) for o in range(6)])
    np.testing.assert_allclose(fit.loss, expected, rtol=1e-3, atol=1e-6)
    assert bool(jnp.all(fit.levels[1:] >= fit.levels[:-1]))
    reached = kmeans.weighted_loss(jnp.asarray(values), jnp.asarray(weight), fit.levels)
    np.testing.assert_allclose(reached, expected, rtol=1e-3, atol=1e-6)


def test_more_levels_than_values_are_lossless():
    values = jnp.asarray([[3.0], [1.0], [2.0]])
    fit = kmeans_exact(values, jnp.ones((3, 1)), 5)
    np.testing.assert_allclose(fit.loss, 0, atol=1e-6)
    assert bool(jnp.all(jnp.isfinite(fit.levels)))
    np.testing.assert_allclose(jnp.unique(jnp.round(fit.levels, 5)), [1, 2, 3])


def test_no_weight_at_all_counts_values_alike():
    values = jnp.asarray([[0.0], [1.0], [5.0], [6.0]])
    fit = kmeans_exact(values, jnp.zeros((4, 1)), 2)
    np.testing.assert_allclose(fit.levels[:, 0], [0.5, 5.5], atol=1e-6)
