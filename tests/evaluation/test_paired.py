"""Standard errors and paired comparisons against textbook values and simulation."""

import math

import numpy as np
import pytest

from compressjax.evaluation.paired import binomial_standard_error, mcnemar, paired_difference, ratio_standard_error


def test_pairing_removes_what_items_share():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(3, 1, 50)
    noise = rng.normal(0, 0.01, 50)
    result = paired_difference(difficulty, difficulty + 0.2 + noise)
    assert result.mean == pytest.approx(0.2 + noise.mean())
    assert result.standard_error == pytest.approx(noise.std(ddof=1) / math.sqrt(50))
    assert result.standard_error < 0.01 * ratio_standard_error(difficulty, np.ones(50)) * 2


def test_one_item_has_no_standard_error():
    assert paired_difference([1.0], [2.0]) == (1.0, None, 1)


def test_ratio_error_with_unequal_weights_meets_simulation():
    rng = np.random.default_rng(1)
    counts = np.tile([5, 10, 40], 20)
    draws = [(counts * 2.0 + np.sqrt(counts) * rng.normal(size=60), counts) for _ in range(2000)]
    spread = np.std([sums.sum() / counts.sum() for sums, counts in draws])
    estimated = np.mean([ratio_standard_error(sums, counts) for sums, counts in draws])
    # 2000 draws know a standard deviation to 1.6 percent.
    assert estimated == pytest.approx(spread, rel=0.08)


def test_items_without_weight_are_left_out():
    sums, counts = np.array([1.0, 3.0, 0.0]), np.array([1, 1, 0])
    assert ratio_standard_error(sums, counts) == ratio_standard_error(sums[:2], counts[:2])
    assert ratio_standard_error(sums[1:], counts[1:]) is None


def test_mcnemar_is_the_exact_sign_test():
    base = [True] * 8 + [False] * 2 + [True] * 5 + [False] * 3
    other = [False] * 8 + [True] * 2 + [True] * 5 + [False] * 3
    result = mcnemar(base, other)
    assert (result.only_base, result.only_other, result.agreement) == (8, 2, 8 / 18)
    assert result.p_value == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(other, base).p_value == result.p_value


def test_mcnemar_at_its_limits():
    assert mcnemar([True, False], [True, False]) == (0, 0, 1.0, 1.0)
    assert mcnemar([True, False], [False, True]).p_value == 1.0
    assert mcnemar([True] * 3000, [False] * 3000).p_value == 0.0 or math.isclose(0.5**2999, 0, abs_tol=1e-300)


def test_binomial_standard_error():
    assert binomial_standard_error(0.5, 60) == pytest.approx(0.0645, abs=1e-4)
    assert binomial_standard_error(1.0, 10) == 0


@pytest.mark.parametrize(("base", "other"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [[1.0]])])
@pytest.mark.parametrize("compare", [paired_difference, mcnemar])
def test_unequal_items_are_refused(compare, base, other):
    with pytest.raises(ValueError, match="must have one shape"):
        compare(base, other)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        paired_difference([1.0, math.nan], [1.0, 2.0])
