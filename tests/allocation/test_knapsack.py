import itertools

import numpy as np
import pytest

from compressjax.allocation import LevelDatabase, knapsack_dp, uniform

LEVELS = (2, 3, 4, 8)


def database(seed=0, items=5, unit=1000):
    draw = np.random.default_rng(seed)
    cost = np.asarray(LEVELS)[None] * draw.integers(1, 9, (items, 1)) * unit
    error = draw.random((items, 1)) * 4.0 ** -np.asarray(LEVELS)[None] * (1 + 0.1 * draw.random((items, 4)))
    return LevelDatabase(names=[f"w{i}" for i in range(items)], levels=LEVELS, cost=cost, error=error)


def every_state(db):
    return itertools.product(range(len(db.levels)), repeat=len(db.names))


@pytest.mark.parametrize("seed", range(5))
def test_least_error_within_a_cost_is_the_best_of_all(seed):
    db = database(seed)
    budget = uniform(db, 1).cost + 700
    found = knapsack_dp(db, budget)
    best = min(db.total_error(s) for s in every_state(db) if db.total_cost(s) <= budget)
    assert found.cost <= budget and found.error == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_least_cost_within_an_error_respects_the_true_error(seed):
    db = database(seed)
    budget = uniform(db, 1).error
    found = knapsack_dp(db, budget, sense="min_cost")
    assert found.error <= budget
    # Rounding up costs at most a bin per item, so nothing cheaper fits a budget smaller by that much.
    tight = budget * (1 - len(db.names) / 10_000)
    assert found.cost <= min(db.total_cost(s) for s in every_state(db) if db.total_error(s) <= tight)


def test_costs_without_a_small_divisor_are_rounded_up():
    db = database(unit=999_983)
    odd = LevelDatabase(names=db.names, levels=LEVELS, cost=db.cost + 1, error=db.error)
    found = knapsack_dp(odd, uniform(odd, 2).cost, bins=1000)
    assert found.cost <= uniform(odd, 2).cost
    assert found.error <= uniform(odd, 1).error


def test_more_budget_is_never_worse_and_the_order_of_items_does_not_matter():
    db = database()
    errors = [knapsack_dp(db, uniform(db, 0).cost + extra * 1000).error for extra in range(0, 40, 8)]
    assert errors == sorted(errors, reverse=True)
    order = np.asarray([3, 0, 4, 2, 1])
    moved = LevelDatabase(names=[db.names[i] for i in order], levels=LEVELS, cost=db.cost[order], error=db.error[order])
    budget = uniform(db, 1).cost
    np.testing.assert_array_equal(knapsack_dp(moved, budget).state, knapsack_dp(db, budget).state[order])


def test_a_level_that_an_item_lacks_is_not_taken():
    db = database()
    error = db.error.copy()
    error[2, :3] = np.inf
    lacking = LevelDatabase(names=db.names, levels=LEVELS, cost=db.cost, error=error)
    assert knapsack_dp(lacking, 10**9).state[2] == 3
    with pytest.raises(ValueError, match="no choice of levels fits"):
        knapsack_dp(lacking, uniform(db, 0).cost)


def test_refusals():
    db = database()
    with pytest.raises(ValueError, match="budget must be positive and finite, got 0"):
        knapsack_dp(db, 0)
    with pytest.raises(ValueError, match="sense must be"):
        knapsack_dp(db, 1, sense="best")
    with pytest.raises(ValueError, match="bins must be at least the number of items 5, got 4"):
        knapsack_dp(db, 1, bins=4)
    with pytest.raises(ValueError, match="needs a LevelDatabase with errors"):
        knapsack_dp(LevelDatabase(names=["a"], levels=[1], cost=[[1]]), 1)
