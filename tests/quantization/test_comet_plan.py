"""Outliers land in wide blocks, predictions are exact on their samples, greedy beats sorting on its objective."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.quantization import COMET
from compressjax.quantization.comet_plan import BlockPlan, channel_error, fmpq_plan, plan_error

CFG = COMET(block=32)


def problem(width=256, outliers=(3, 40, 100, 200), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(128, width)).astype(np.float32)
    x[:, list(outliers)] *= rng.uniform(20, 60, len(outliers)).astype(np.float32)
    energy = jnp.asarray(rng.gamma(0.5, size=width), jnp.float32)
    return Record(abs_max=jnp.asarray(np.abs(x).max(0)), samples=jnp.asarray(x)), energy


def test_every_outlier_is_in_a_wide_block():
    for count in (0, 1, 31, 33):
        stats, energy = problem(outliers=tuple(range(0, 7 * count, 7)))
        plan = fmpq_plan(stats, energy, CFG)
        assert int(plan.outliers) == count and int(plan.n_hi) == -(-count // 32) == int(plan.wanted)
        wide = set(np.asarray(plan.perm)[: 32 * int(plan.n_hi)].tolist())
        assert set(range(0, 7 * count, 7)) <= wide
        assert sorted(np.asarray(plan.perm).tolist()) == list(range(256))


def test_the_cap_keeps_the_largest_and_says_that_it_cut():
    stats, energy = problem(outliers=tuple(range(100)))
    plan = fmpq_plan(stats, energy, COMET(block=32, max_hi_fraction=0.25))
    assert (int(plan.n_hi), int(plan.wanted)) == (2, 4)
    top = np.argsort(-np.asarray(stats.abs_max), kind="stable")[:64]
    np.testing.assert_array_equal(plan.perm[:64], top)


def test_wide_blocks_fall_as_the_threshold_rises():
    stats, energy = problem(outliers=tuple(range(0, 120, 2)))
    cfgs = [COMET(block=32, tau=tau, max_hi_fraction=1.0) for tau in (1, 3, 9, 20, 99)]
    counts = [int(fmpq_plan(stats, energy, cfg).n_hi) for cfg in cfgs]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0


def test_without_sorting_whole_blocks_with_outliers_come_first():
    stats, energy = problem(outliers=(100, 200))
    plan = fmpq_plan(stats, energy, COMET(block=32, permute=False))
    blocks = np.asarray(plan.perm).reshape(8, 32)
    assert int(plan.n_hi) == 2 and {int(b[0]) // 32 for b in blocks[:2]} == {3, 6}
    assert all((np.diff(b) == 1).all() for b in blocks)


def test_channel_error_is_that_of_rounding_the_samples():
    stats, _ = problem(width=64, outliers=(5,))
    perm = np.random.default_rng(1).permutation(64)
    x = np.asarray(stats.samples)[:, perm].reshape(-1, 2, 32)
    step = np.abs(x).max(-1, keepdims=True) / 7
    expected = ((np.round(x / step) * step - x) ** 2).mean(0)
    found = channel_error(stats.samples, jnp.asarray(perm), 32, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("permute", [True, False])
def test_the_error_rule_is_never_worse_on_its_objective_at_the_same_count(permute):
    for seed in range(3):
        stats, energy = problem(seed=seed)
        by_size = fmpq_plan(stats, energy, COMET(block=32, tau=1.0, permute=permute))
        by_error = fmpq_plan(stats, energy, COMET(block=32, rule="error", permute=permute))
        assert int(by_size.n_hi) == int(by_error.n_hi) == 2
        assert float(plan_error(by_error, stats.samples, energy, CFG)) <= float(
            plan_error(by_size, stats.samples, energy, CFG)
        ) * (1 + 1e-6)


def test_the_error_rule_takes_the_best_pair_of_blocks():
    stats, energy = problem()
    cfg = COMET(block=32, rule="error", permute=False)
    best = float(plan_error(fmpq_plan(stats, energy, cfg), stats.samples, energy, cfg))
    blocks = np.arange(256).reshape(8, 32)
    for i in range(8):
        for j in range(i):
            rest = [b for b in range(8) if b not in (i, j)]
            perm = jnp.asarray(np.concatenate([blocks[i], blocks[j], *blocks[rest]]))
            other = BlockPlan(perm, jnp.int32(2), jnp.int32(2), jnp.int32(0))
            assert best <= float(plan_error(other, stats.samples, energy, cfg)) * (1 + 1e-5)


def test_a_short_last_block_stays_last_and_narrow():
    stats, energy = problem(width=72, outliers=(70,))
    plan = fmpq_plan(stats, energy, COMET(block=32, permute=False, max_hi_fraction=0.5))
    np.testing.assert_array_equal(plan.perm[64:], np.arange(64, 72))
    sorted_plan = fmpq_plan(stats, energy, dataclasses.replace(CFG, max_hi_fraction=0.5))
    assert int(sorted_plan.perm[0]) == 70 and int(sorted_plan.n_hi) == 1


def test_weights_of_no_consequence_are_not_made_wide():
    stats, energy = problem(width=128, outliers=(3,))
    perm = fmpq_plan(stats, energy.at[3].set(0.0).at[:32].mul(1e-6), COMET(block=32, rule="error", permute=False)).perm
    assert int(perm[0]) // 32 != 0
