import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressjax.checkpoint.rotary_order import to_half_split, to_interleaved


@given(heads=st.integers(1, 5), pairs=st.integers(1, 6), inputs=st.sampled_from([None, 1, 3]))
def test_round_trip_both_ways(heads, pairs, inputs):
    shape = (heads * pairs * 2,) if inputs is None else (heads * pairs * 2, inputs)
    rows = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(to_half_split(to_interleaved(rows, heads), heads), rows)
    np.testing.assert_array_equal(to_interleaved(to_half_split(rows, heads), heads), rows)


def test_pairs_move_where_rotation_expects_them():
    # One head of 6: interleaved pairs (0 1) (2 3) (4 5) become (0 3) (1 4) (2 5).
    np.testing.assert_array_equal(to_half_split(np.array([0, 1, 2, 3, 4, 5]), 1), [0, 2, 4, 1, 3, 5])
    two = np.concatenate([np.arange(4), 10 + np.arange(4)])
    np.testing.assert_array_equal(to_half_split(two, 2), [0, 2, 1, 3, 10, 12, 11, 13])


def test_scores_agree_with_interleaved_rotation():
    """Rotating interleaved rows as pairs gives the attention scores that half-split rotation gives after reordering."""
    rng = np.random.default_rng(0)
    heads, size = 3, 8
    q, k = rng.normal(size=(2, heads * size))
    angles = 0.7 ** np.arange(size // 2)

    def interleaved(x, position):
        x = x.reshape(heads, size // 2, 2)
        c, s = np.cos(position * angles), np.sin(position * angles)
        return np.stack([x[..., 0] * c - x[..., 1] * s, x[..., 1] * c + x[..., 0] * s], -1).reshape(heads, size)

    def half_split(x, position):
        a, b = np.split(x.reshape(heads, size), 2, axis=-1)
        c, s = np.cos(position * angles), np.sin(position * angles)
        return np.concatenate([a * c - b * s, b * c + a * s], -1)

    want = (interleaved(q, 5) * interleaved(k, 2)).sum(-1)
    got = (half_split(to_half_split(q, heads), 5) * half_split(to_half_split(k, heads), 2)).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(("rows", "heads"), [(10, 4), (9, 3), (8, 0)])
@pytest.mark.parametrize("change", [to_half_split, to_interleaved])
def test_rows_that_do_not_divide_are_refused(change, rows, heads):
    with pytest.raises(ValueError, match=f"heads={heads}"):
        change(np.zeros(rows), heads)
