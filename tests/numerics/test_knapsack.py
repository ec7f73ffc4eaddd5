import itertools

import numpy as np
import pytest

from compressjax.numerics.knapsack import multiple_choice_knapsack


def by_trial(values, weights, capacity):
    best = None
    for levels in itertools.product(range(values.shape[1]), repeat=len(values)):
        at = np.arange(len(values)), np.asarray(levels)
        if weights[at].sum() <= capacity:
            total = values[at].sum()
            best = total if best is None or total < best else best
    return best


def test_against_all_choices():
    draw = np.random.default_rng(0)
    for _ in range(200):
        shape = draw.integers(1, 6), draw.integers(1, 5)
        values = draw.integers(0, 2**40, shape) if draw.random() < 0.5 else draw.random(shape)
        weights, capacity = draw.integers(0, 12, shape), int(draw.integers(0, 30))
        found = multiple_choice_knapsack(values, weights, capacity)
        best = by_trial(values, weights, capacity)
        if best is None:
            assert found is None
            continue
        at = np.arange(shape[0]), found.levels
        assert found.value == pytest.approx(best, rel=1e-12, abs=0) and values[at].sum() == pytest.approx(found.value)
        assert weights[at].sum() == found.weight <= capacity


def test_integers_stay_exact_beyond_53_bits():
    values = np.asarray([[2**60 + 1, 2**60]], np.int64)
    assert multiple_choice_knapsack(values, np.zeros((1, 2), int), 0).value == 2**60
    assert isinstance(multiple_choice_knapsack(values, np.zeros((1, 2), int), 0).value, int)


def test_refusals():
    one = np.ones((1, 1), int)
    for values, weights, capacity, message in [
        (one, np.ones((1, 2), int), 1, "must share a shape"),
        (one, -one, 1, "must be >= 0"),
        (one, one, -1, "must be >= 0"),
        (np.asarray([[np.inf]]), one, 1, "values must be finite"),
        (np.asarray([[2**62]]), one, 1, "does not fit 62 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            multiple_choice_knapsack(values, weights, capacity)
    with pytest.raises(TypeError, match="weights must be integers, got float64"):
        multiple_choice_knapsack(one, one.astype(float), 1)
