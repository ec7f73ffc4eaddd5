"""Every block is handed out once, loads are even, and parts are summed in one order."""

import numpy as np
import pytest

from compressjax.numerics.task_table import plan_tasks

SHAPES = [(1, 64, 9, 2, 4), (300, 500, 9, 0, 7), (128, 128, 4, 4, 3), (640, 384, 12, 3, 16), (100, 100, 1, 1, 50)]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("rows, cols, blocks, n_hi, workers", SHAPES)
def test_every_block_of_every_tile_is_handed_out_once(rows, cols, blocks, n_hi, workers, split):
    table = plan_tasks(rows, cols, blocks, n_hi, workers, split=split)
    tile_rows, tile_cols = -(-rows // 128), -(-cols // 128)
    count = np.zeros((tile_rows, tile_cols, blocks), int)
    load = np.zeros(workers, int)
    for worker, i, j, first, stop in table.tasks:
        count[i, j, first:stop] += 1
        load[worker] += sum(2 if b < n_hi else 1 for b in range(first, stop))
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_array_equal(table.load, load)
    if not split:
        assert len(table.tasks) == tile_rows * tile_cols
        assert load.max() - load.min() <= blocks + n_hi


@pytest.mark.parametrize("rows, cols, blocks, n_hi, workers", SHAPES)
def test_cut_loads_are_within_one_block_of_the_mean(rows, cols, blocks, n_hi, workers):
    load = plan_tasks(rows, cols, blocks, n_hi, workers).load
    assert np.abs(load - load.mean()).max() <= (2 if n_hi else 1)


def test_cutting_beats_whole_tiles_in_the_last_wave():
    # 6 tiles on 4 workers: two waves whole, one and a half when cut.
    whole, cut = (plan_tasks(256, 384, 8, 2, 4, split=split).load.max() for split in (False, True))
    assert (whole, cut) == (20, 15)


def test_parts_summed_in_table_order_repeat_bit_for_bit_whatever_ran_first():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 12)).astype(np.float32), rng.normal(size=(12, 8)).astype(np.float32)
    table = plan_tasks(8, 8, 6, 2, 5, tile=(4, 4))
    assert np.diff(table.parts).max() > 1

    def run(order):
        partial = {}
        for task in order:
            _, i, j, first, stop = table.tasks[task]
            partial[task] = x[4 * i : 4 * i + 4, 2 * first : 2 * stop] @ w[2 * first : 2 * stop, 4 * j : 4 * j + 4]
        y = np.zeros((8, 8), np.float32)
        for tile in range(4):
            for task in range(table.parts[tile], table.parts[tile + 1]):
                _, i, j, _, _ = table.tasks[task]
                y[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] += partial[task]
        return y

    one = run(range(len(table.tasks)))
    np.testing.assert_array_equal(one, run(rng.permutation(len(table.tasks))))
    np.testing.assert_allclose(one, x @ w, rtol=1e-5, atol=1e-5)
    for tile in range(4):
        own = table.tasks[table.parts[tile] : table.parts[tile + 1]]
        assert own[0, 3] == 0 and own[-1, 4] == 6 and (own[1:, 3] == own[:-1, 4]).all()


@pytest.mark.parametrize(
    "field, arguments",
    [("rows", (0, 1, 1, 0, 1)), ("workers", (1, 1, 1, 0, 0)), ("n_hi", (1, 1, 2, 3, 1)), ("blocks", (1, 1, 0, 0, 1))],
)
def test_refusals(field, arguments):
    with pytest.raises(ValueError, match=f"plan_tasks: {field} must be"):
        plan_tasks(*arguments)
