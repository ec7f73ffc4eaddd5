import numpy as np
import pytest

from compressjax.factorization import blocks_between, budget_table, levels_for_budget

ORDER, SIZE = [1, 0, 1, 2, 0, 2], [10, 20, 30]


def test_prefixes_rise_block_by_block():
    table = budget_table(ORDER, SIZE, 1000)
    assert table.bytes.tolist() == [1060, 1080, 1090, 1110, 1140, 1150, 1180]
    assert table.levels[0].tolist() == [1, 1, 1] and table.levels[-1].tolist() == [3, 3, 3]
    assert (np.diff(table.levels, axis=0) >= 0).all() and (np.diff(table.levels, axis=0).sum(axis=1) == 1).all()
    assert (table.bytes == 1000 + table.levels @ np.asarray(SIZE)).all()


def test_bytes_beyond_32_bits_are_exact():
    table = budget_table([0], [2**40], 3)
    assert table.bytes.tolist() == [2**40 + 3, 2**41 + 3]


@pytest.mark.parametrize("budget, levels", [(1060, [1, 1, 1]), (1089, [1, 2, 1]), (1090, [2, 2, 1]), (9999, [3, 3, 3])])
def test_a_budget_between_two_entries_takes_the_lower(budget, levels):
    assert levels_for_budget(budget_table(ORDER, SIZE, 1000), budget).tolist() == levels


def test_a_budget_below_the_smallest_model_is_refused():
    with pytest.raises(ValueError, match="1,059 bytes are not enough: with one block per matrix the model takes 1,060"):
        levels_for_budget(budget_table(ORDER, SIZE, 1000), 1059)


def test_only_the_difference_moves():
    up = blocks_between([1, 3, 1], [3, 2, 2])
    assert list(zip(*up, strict=True)) == [(0, 1), (0, 2), (2, 1)]
    assert len(blocks_between([2, 2], [1, 2]).matrix) == 0


@pytest.mark.parametrize(
    "order, size, message",
    [
        ([0, 0, 1], [1, 1], "order leaves out levels: matrices occur 1 to 2 times"),
        ([0, 2], [1, 1], "order must hold numbers of matrices in 0..1"),
        ([0, 1], [1, 0], "block_bytes must be"),
    ],
)
def test_bad_orders_are_refused(order, size, message):
    with pytest.raises(ValueError, match=message):
        budget_table(order, size, 0)
