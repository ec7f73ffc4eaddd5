import numpy as np
import pytest

from compressjax.evaluation.auc import roc_auc


def pairs(scores, labels):
    """The definition: every positive against every negative."""
    up, down = scores[labels == 1][:, None], scores[labels == 0][None]
    return float(np.mean((up > down) + 0.5 * (up == down)))


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_it_is_the_share_of_pairs_in_order(levels):
    rng = np.random.default_rng(levels)
    scores, labels = rng.integers(0, levels, 400) / 7, rng.integers(0, 2, 400)
    assert roc_auc(scores, labels) == pytest.approx(pairs(scores, labels), abs=1e-12)
    assert roc_auc(-scores, labels) == pytest.approx(1 - roc_auc(scores, labels))
    assert roc_auc(np.exp(scores / levels), labels) == pytest.approx(roc_auc(scores, labels))


def test_limits():
    assert roc_auc([0.0, 1.0], [0, 1]) == 1.0
    assert roc_auc([1.0, 0.0], [0, 1]) == 0.0
    assert roc_auc([3.0] * 5, [0, 1, 0, 1, 1]) == 0.5
    assert roc_auc([0.2, 0.1], [True, False]) == 1.0


@pytest.mark.parametrize(
    "scores, labels, message",
    [
        ([0.1, 0.2], [0, 1, 1], r"must be \[N\] both, got \(2,\) and \(3,\)"),
        ([0.1, 0.2], [0, 2], "labels must be 0 or 1"),
        ([0.1, np.nan], [0, 1], "scores must be finite"),
        ([0.1, 0.2], [1, 1], "both classes, got 2 positive and 0 negative"),
    ],
)
def test_bad_input_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(scores, labels)
