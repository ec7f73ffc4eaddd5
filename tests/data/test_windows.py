"""Windows of tokens: laws of where they lie, and refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressjax.data.windows import baseline_windows, calibration_windows, wikitext2_windows, windows


@given(n=st.integers(2, 200), length=st.integers(2, 40), data=st.data())
def test_consecutive_windows_lie_a_stride_apart(n, length, data):
    length = min(length, n)
    stride = data.draw(st.one_of(st.none(), st.integers(1, length)))
    cut = windows(np.arange(n), length, stride=stride)
    step = stride or length
    assert cut.dtype == np.int32 and cut.shape[1] == length
    assert (cut == np.arange(len(cut))[:, None] * step + np.arange(length)).all()
    # One more would not fit.
    assert cut[-1, -1] + step >= n


@given(n=st.integers(2, 300), length=st.integers(2, 30), data=st.data())
def test_even_windows_reach_from_first_to_last_without_overlap(n, length, data):
    length = min(length, n)
    count = data.draw(st.integers(1, n // length))
    cut = windows(np.arange(n), length, count, spread="even")
    starts = cut[:, 0]
    assert cut.shape == (count, length)
    assert (cut - starts[:, None] == np.arange(length)).all()
    assert starts[0] == 0
    gaps = np.diff(starts)
    assert (gaps >= length).all()
    if count > 1:
        assert cut[-1, -1] == n - 1
        assert gaps.max() - gaps.min() <= 1


def test_protocols():
    ids = np.arange(250_000)
    assert (baseline_windows(ids).reshape(-1) == np.arange(8 * 512)).all()
    assert (wikitext2_windows(ids).reshape(-1) == np.arange(30_720)).all()
    calibration = calibration_windows(ids)
    assert calibration.shape == (32, 512)
    assert (calibration == windows(ids, 512, 32, spread="even")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": range(5), "length": 6}, "a text of 5 tokens is shorter than one window of 6"),
        ({"ids": range(11), "length": 4, "count": 3}, "3 windows of 4 tokens need 12 tokens, the text has 11"),
        ({"ids": range(11), "length": 4, "count": 3, "spread": "even"}, "need 12 tokens, the text has 11"),
        ({"ids": range(11), "length": 4, "count": 3, "stride": 4}, "need 12 tokens, the text has 11"),
        ({"ids": [], "length": 4}, "ids are empty"),
        ({"ids": [[1, 2]], "length": 2}, r"one-dimensional, got shape \(1, 2\)"),
        ({"ids": [1, -2, 3], "length": 2}, "got -2"),
        ({"ids": [1, 7, 3], "length": 2, "vocab_size": 7}, r"in \[0, 7\), got 7"),
        ({"ids": [1, 2**31], "length": 2}, "got 2147483648"),
        ({"ids": range(9), "length": 8, "context": 7}, "windows of 8 tokens are longer than the context of 7"),
        ({"ids": range(9), "length": 1}, "length must be at least 2 tokens, got 1"),
        ({"ids": range(9), "length": 4, "count": 0}, "count must be at least 1 window, got 0"),
        ({"ids": range(9), "length": 4, "stride": 0}, "stride must be between 1 and length=4, got 0"),
        ({"ids": range(9), "length": 4, "stride": 5}, "stride must be between 1 and length=4, got 5"),
        ({"ids": range(9), "length": 4, "spread": "even", "stride": 2}, "stride=2 has no meaning"),
        ({"ids": range(9), "length": 4, "spread": "random"}, "spread must be 'start' or 'even', got 'random'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        windows(**arguments)


def test_ids_must_be_integers():
    with pytest.raises(TypeError, match="must be integers, got float64"):
        windows([1.0, float("nan"), 2.0], 2)


def test_ids_at_the_edges_are_let_through():
    assert windows([6, 0], 2, vocab_size=7, context=2).tolist() == [[6, 0]]
