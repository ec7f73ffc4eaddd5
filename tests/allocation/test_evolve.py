"""Evolution over levels: budgets that hold exactly, and optima that are found."""

import numpy as np
import pytest

from compressjax.allocation import LevelDatabase, knapsack_dp
from compressjax.allocation.evolve import EvoPress, evolve, random_within
from compressjax.allocation.mutation import exchange, flips, groups_of, swap_dropped
from compressjax.allocation.searches import exhaustive, greedy

SIZES = np.asarray([4, 4, 4, 4, 9, 9, 9, 9])
SMALL = EvoPress(generations=40, offspring=12, survivors=(4, 1), tokens=(1, 1))


def database(errors=None):
    return LevelDatabase(
        names=tuple(f"block{i}/{'a' if i < 4 else 'b'}" for i in range(8)),
        levels=(2, 3, 4),
        cost=SIZES[:, None] * np.asarray([2, 3, 4])[None],
        error=errors,
    )


def equal(errors=None):
    """Eight items of one size, so that every exchange keeps the total."""
    cost = np.tile([2, 3, 4], (8, 1))
    return LevelDatabase(names=tuple(f"b{i}" for i in range(8)), levels=(2, 3, 4), cost=cost, error=errors)


def last(search):
    return list(search)[-1]


@pytest.mark.parametrize("group", ["size", "name", "none"])
def test_mutations_keep_the_budget(group):
    db, rng = database(), np.random.default_rng(0)
    budget = int(SIZES.sum() * 3)
    change, state, moved = exchange(db, budget, rng, group=group, most=3), np.ones(8, np.int64), 0
    for _ in range(3000):
        new = change(state)
        if new is None:
            continue
        assert new.min() >= 0 and new.max() <= 2 and not np.array_equal(new, state)
        assert db.total_cost(new) <= budget
        assert group == "none" or db.total_cost(new) == budget
        state, moved = new, moved + 1
    assert moved > 1000


def test_depth_swaps_keep_how_many_of_each_kind_are_gone():
    kinds, rng = np.repeat([0, 1], 6), np.random.default_rng(0)
    state = np.asarray([0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1])
    change = swap_dropped(kinds, rng, most=3, legal=lambda s: s[0] == 0)
    for _ in range(500):
        new = change(state)
        if new is not None:
            assert new[:6].sum() == 4 and new[6:].sum() == 5 and new[0] == 0
            state = new


def test_few_flips_are_likelier_than_many():
    rng = np.random.default_rng(0)
    counts = np.bincount([flips(rng, 3) for _ in range(9000)], minlength=4)[1:]
    assert np.abs(counts - np.asarray([5000, 3000, 1000])).max() < 200


def test_names_that_mix_costs_are_refused():
    db = LevelDatabase(names=("x/a", "y/a"), levels=(2, 3), cost=np.asarray([[2, 3], [4, 6]]))
    with pytest.raises(ValueError, match="share a name but not their steps in cost"):
        groups_of(db, "name")
    assert [len(g) for g in groups_of(database(), "size")] == [4, 4]


def test_the_optimum_of_a_fitness_that_does_not_add_up_is_found():
    db, budget, found = equal(), 24, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        table, pairs = -np.sort(-rng.uniform(size=(8, 3)), axis=1), rng.normal(size=(8, 8)) * 0.3

        def fitness(state, batch=None, table=table, pairs=pairs):
            low = (2 - state).astype(float)
            return float(table[np.arange(8), state].sum() + low @ pairs @ low)

        best = fitness(exhaustive(db, budget, lambda s, f=fitness: f(s) if db.total_cost(s) == budget else np.inf))
        search = evolve(
            db,
            budget,
            fitness,
            lambda tokens, rng: None,
            lambda rng: exchange(db, budget, rng, group="size", most=3),
            EvoPress(generations=60, offspring=64, survivors=(8, 1), tokens=(1, 1), seed=seed),
            start=random_within(db, budget, rng),
        )
        values = [g.fitness for g in search]
        assert all(a >= b for a, b in zip(values, values[1:], strict=False))  # the parent is judged beside its children
        found += np.isclose(values[-1], best)
    assert found >= 9


def test_additive_errors_give_what_the_knapsack_gives():
    db, budget = equal(-np.sort(-np.random.default_rng(3).uniform(size=(8, 3)), axis=1)), 24
    exact = knapsack_dp(db, budget)
    search = evolve(
        db,
        budget,
        lambda state, batch: db.total_error(state),
        lambda tokens, rng: None,
        lambda rng: exchange(db, budget, rng, group="size", most=3),
        EvoPress(generations=40, offspring=24, survivors=(6, 1), tokens=(1, 1)),
        start=np.ones(8, np.int64),
    )
    assert last(search).fitness == pytest.approx(exact.error)
    assert exact.error == pytest.approx(db.total_error(exhaustive(db, budget, db.total_error)))
    one_by_one = greedy(db, budget)
    assert db.total_cost(one_by_one) <= budget and exact.error <= db.total_error(one_by_one)


def test_stages_see_one_batch_each_and_tokens_are_counted():
    db, budget, seen = database(), int(SIZES.sum() * 3), []

    def draw(tokens, rng):
        seen.append(tokens)
        return len(seen)

    batches = []
    search = evolve(
        db,
        budget,
        lambda state, batch: batches.append(batch) or float(state[0]),
        draw,
        lambda rng: exchange(db, budget, rng, group="size", most=3),
        EvoPress(generations=2, offspring=6, survivors=(3, 1), tokens=(10, 100)),
        start=np.ones(8, np.int64),
    )
    end = last(search)
    assert seen == [10, 100, 10, 100]
    assert [batches.count(i) for i in (1, 2, 3, 4)] == [6, 4, 6, 4]  # the parent joins the last stage
    assert end.judged == 2 * (6 * 10 + 4 * 100) and end.number == 2


def test_bad_input_is_refused():
    db = database()
    with pytest.raises(ValueError, match=r"survivors .* and tokens .* must be as many"):
        EvoPress(survivors=(2, 1), tokens=(8,))
    with pytest.raises(ValueError, match="must fall to 1"):
        EvoPress(survivors=(2, 2), tokens=(8, 8))
    with pytest.raises(ValueError, match="the start costs"):
        next(evolve(db, 1, lambda s, b: 0.0, lambda t, r: None, lambda r: lambda s: s, SMALL, start=np.ones(8, int)))
    with pytest.raises(ValueError, match="the lowest levels cost"):
        random_within(db, 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="greedy needs a fitness"):
        greedy(db, 100)
    with pytest.raises(ValueError, match="no choice of levels fits"):
        exhaustive(db, 1, lambda s: 0.0)
