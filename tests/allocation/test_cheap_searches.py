"""Searches that cost next to nothing, and the choice between them by the whole network."""

import itertools

import numpy as np
import pytest

from compressjax.allocation import BestOf, Greedy, KnapsackDP, LevelDatabase, NeighbourDP, Uniform, allocate

ITEMS, LEVELS = 5, 4


def database(seed=0):
    rng = np.random.default_rng(seed)
    cost = np.cumsum(rng.integers(1, 9, (ITEMS, LEVELS)), axis=1)
    error = np.sort(rng.gamma(1.0, size=(ITEMS, LEVELS)), axis=1)[:, ::-1]
    return LevelDatabase(names=tuple("abcde"), levels=tuple(range(LEVELS)), cost=cost, error=error)


class Judge:
    """A fitness that counts what it is asked and likes states near a target."""

    def __init__(self, target):
        self.target, self.drawn, self.asked = np.asarray(target), [], 0

    def draw(self, count, rng):
        self.drawn.append(count)
        return "batch"

    def __call__(self, state, batch):
        assert batch == "batch"
        self.asked += 1
        return float(np.abs(state - self.target).sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spare", [0, 7, 1000])
def test_neighbours_are_the_best_of_two_levels(seed, spare):
    db = database(seed)
    budget = int(db.cost[:, 1].sum()) + spare
    lower = int(allocate(db, budget, Uniform()).state[0])
    pair = [lower, min(lower + 1, LEVELS - 1)]
    choices = [np.asarray(c) for c in itertools.product(pair, repeat=ITEMS)]
    best = min(db.total_error(c) for c in choices if db.total_cost(c) <= budget)
    found = allocate(db, budget, NeighbourDP())
    assert found.cost <= budget and set(found.state) <= set(pair)
    assert found.error == pytest.approx(best)


@pytest.mark.parametrize("spare", [0, 1])
def test_rounding_to_bins_never_makes_the_lower_level_too_dear(spare):
    cost = np.asarray([[1_000_003, 2_000_003, 3_000_003]]).repeat(300, axis=0)
    db = LevelDatabase(names=tuple(map(str, range(300))), levels=(2, 3, 4), cost=cost, error=1.0 / cost)
    found = allocate(db, int(cost[:, 1].sum()) + spare, NeighbourDP(bins=1000))
    np.testing.assert_array_equal(found.state, 1)


def test_neighbours_need_errors():
    db = LevelDatabase(names=("a",), levels=(2, 3), cost=np.asarray([[2, 3]]))
    with pytest.raises(ValueError, match="NeighbourDP needs a LevelDatabase with errors"):
        allocate(db, 3, NeighbourDP())


def test_neighbours_need_room_for_the_lowest_level():
    db = database()
    with pytest.raises(ValueError, match="the lowest levels cost"):
        allocate(db, int(db.cost[:, 0].sum()) - 1, NeighbourDP())


@pytest.mark.parametrize("liked", [Uniform(), Greedy(), KnapsackDP(), NeighbourDP()])
def test_the_network_decides_between_them(liked):
    db = database(1)
    budget = int(db.cost[:, 1].sum()) + 6
    wanted = allocate(db, budget, liked).state
    judge = Judge(wanted)
    found = allocate(db, budget, BestOf(tokens=99), judge)
    np.testing.assert_array_equal(found.state, wanted)
    assert (found.cost, judge.drawn, judge.asked) == (db.total_cost(wanted), [99], 4)


def test_the_best_of_nothing_or_without_a_judge_is_refused():
    with pytest.raises(ValueError, match="BestOf.searches must name at least one"):
        BestOf(searches=())
    with pytest.raises(ValueError, match="BestOf judges choices by the whole network"):
        allocate(database(), 100, BestOf())
