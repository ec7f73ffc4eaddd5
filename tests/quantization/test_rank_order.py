"""The order by rank correlation, against the same chain in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.quantization.rank_order import spearman_order


def test_each_input_is_the_most_alike_of_those_left():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(12, 40)).astype(np.float32)
    ranks = w.argsort(1).argsort(1).astype(np.float64)
    ranks -= ranks.mean(1, keepdims=True)
    alike = ranks @ ranks.T
    chain = [0]
    while len(chain) < 12:
        left = [j for j in range(12) if j not in chain]
        chain.append(max(left, key=lambda j: alike[chain[-1], j]))
    np.testing.assert_array_equal(jax.jit(spearman_order)(jnp.asarray(w)), chain)


def test_twins_stand_together():
    rng = np.random.default_rng(1)
    one = rng.normal(size=(5, 30)).astype(np.float32)
    w = np.concatenate([one, 3 * one + 1])  # equal ranks
    order = np.asarray(spearman_order(jnp.asarray(w)))
    place = np.argsort(order)
    assert all(abs(place[i] - place[i + 5]) == 1 for i in range(5))
