"""Masks: exact counts, the best groups by brute force, ties to the lower index."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.sparsity.gqsa_mask import (
    group_mask,
    group_scores,
    keep_in_matrix,
    keep_in_outputs,
    keep_n_of_m,
    kept_count,
    n_m_mask,
    weight_scores,
)

from .problems import plan_of, problem


def scores(groups=6, cols=5, seed=0):
    return np.random.default_rng(seed).random((groups, cols)).astype(np.float32)


def test_scores_are_the_formulas():
    w, record, _ = problem(16, 4)
    plan = plan_of(record, 8, "group_aware")
    h = np.asarray(record.xtx, np.float64)
    damped = h + 0.01 * np.mean(np.diag(h)) * np.eye(16)
    squares = np.asarray(w, np.float64) ** 2
    np.testing.assert_allclose(weight_scores(w, plan, "magnitude"), squares, rtol=1e-5)
    np.testing.assert_allclose(weight_scores(w, plan, "wanda"), squares * np.diag(h)[:, None], rtol=1e-5)
    inverse = np.diag(np.linalg.inv(damped))[:, None]
    np.testing.assert_allclose(weight_scores(w, plan, "obs"), squares / inverse, rtol=1e-3)
    grouped = group_scores(weight_scores(w, plan, "magnitude"), 8)
    np.testing.assert_allclose(grouped[1, 2], squares[8:, 2].mean(), rtol=1e-5)


def test_every_output_keeps_its_best():
    s = scores()
    kept = keep_in_outputs(jnp.asarray(s), 2)
    for o in range(5):
        np.testing.assert_array_equal(kept[:, o], np.sort(np.argsort(-s[:, o])[:2]))
    mask = group_mask(kept, 6, 5)
    np.testing.assert_array_equal(mask, s >= np.sort(s, axis=0)[-2])


def test_the_matrix_keeps_its_best():
    s = scores()
    kept = keep_in_matrix(jnp.asarray(s), 11)
    np.testing.assert_array_equal(group_mask(kept, 6, 5), s >= np.sort(s, axis=None)[-11])
    assert np.all(np.diff(kept) > 0)


def test_least_groups_stay_in_every_output():
    s = scores()
    s[:, 0] = 0.001 * s[:, 0]
    free = group_mask(keep_in_matrix(jnp.asarray(s), 15), 6, 5)
    assert not np.any(free[:, 0])
    held = np.asarray(group_mask(keep_in_matrix(jnp.asarray(s), 15, least=2), 6, 5))
    assert held.sum() == 15 and held[:, 0].sum() == 2
    np.testing.assert_array_equal(np.nonzero(held[:, 0])[0], np.sort(np.argsort(-s[:, 0])[:2]))


def test_ties_go_to_the_lower_index():
    same = jnp.ones((4, 3))
    np.testing.assert_array_equal(keep_in_outputs(same, 2), np.array([[0] * 3, [1] * 3]))
    np.testing.assert_array_equal(keep_in_matrix(same, 5), np.arange(5))


@pytest.mark.parametrize("n, m", [(2, 4), (1, 8)])
def test_n_of_m_are_the_best_of_each_run(n, m):
    s = np.random.default_rng(1).random((16, 3)).astype(np.float32)
    positions = np.asarray(keep_n_of_m(jnp.asarray(s), n, m))
    mask = np.asarray(n_m_mask(jnp.asarray(positions), m))
    for block in range(16 // m):
        run = s[block * m : (block + 1) * m]
        np.testing.assert_array_equal(positions[block], np.sort(np.argsort(-run, axis=0)[:n], axis=0))
        np.testing.assert_array_equal(mask[block * m : (block + 1) * m], run >= np.sort(run, axis=0)[-n])


def test_counts_are_exact_and_never_zero():
    assert kept_count(36, 0.5) == 18 and kept_count(36, 0.0) == 36 and kept_count(36, 1 - 1 / 36) == 1
    with pytest.raises(ValueError, match="sparsity=0.99 leaves none of 4 groups"):
        kept_count(4, 0.99)
    with pytest.raises(ValueError, match="least=3 groups in each of 5 outputs exceed the 11 kept"):
        keep_in_matrix(jnp.asarray(scores()), 11, least=3)
