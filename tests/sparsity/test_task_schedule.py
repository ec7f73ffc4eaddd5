"""Equal shares of groups, and a product computed task by task with a carry for shared rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.sparsity import plan_tasks

LENGTHS = {
    "uneven": [3, 0, 17, 1, 0, 5, 2],
    "one row": [13],
    "empty ends": [0, 0, 4, 4, 0],
    "even": [4] * 6,
}


def product(parts, row_ptr, plan):
    """``y_row = sum of the row's parts`` as a kernel would: own rows written, shared rows through the carry."""
    rows = len(row_ptr) - 1
    y, carry = np.zeros(rows), []
    written = np.zeros(rows, int)
    for t in range(len(plan.start)):
        start, stop, row, count = (int(a[t]) for a in plan[:4])
        for r in range(row, row + count):
            low, high = max(start, row_ptr[r]), min(stop, row_ptr[r + 1])
            total = parts[low:high].sum()
            first, last = r == row, r == row + count - 1
            if (first and plan.shares_first[t]) or (last and plan.shares_last[t]):
                carry.append((r, total))
            else:
                y[r] = total
                written[r] += 1
    for r, total in carry:
        y[r] += total
    assert written.max() <= 1
    assert not written[[r for r, _ in carry]].any()
    return y


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("tasks, quantum", [(1, 1), (7, 1), (5, 2), (100, 1)])
def test_tasks_cover_every_group_once(name, tasks, quantum):
    lengths = np.asarray(LENGTHS[name])
    row_ptr, total = np.concatenate([[0], np.cumsum(lengths)]), int(lengths.sum())
    plan = jax.jit(plan_tasks, static_argnums=(1, 2, 3))(jnp.asarray(row_ptr, jnp.int32), tasks, total, quantum)
    sizes = np.asarray(plan.stop - plan.start)
    assert sizes.sum() == total and np.all(np.asarray(plan.start)[1:] == np.asarray(plan.stop)[:-1])
    run = -(-total // (tasks * quantum)) * quantum
    assert sizes.max() <= run and sizes[sizes > 0].min() >= min(run, total - run * (np.count_nonzero(sizes) - 1))
    assert np.all(sizes[:-1] >= sizes[1:])
    parts = np.random.default_rng(0).integers(-9, 9, total).astype(float)
    expected = [parts[a:b].sum() for a, b in zip(row_ptr, row_ptr[1:], strict=False)]
    np.testing.assert_array_equal(product(parts, row_ptr, plan), expected)


def test_a_row_over_many_tasks_is_shared_by_all_of_them():
    plan = plan_tasks(jnp.asarray([0, 2, 18, 20]), 10, 20)
    np.testing.assert_array_equal(plan.row, [0] + [1] * 8 + [2])
    np.testing.assert_array_equal(plan.shares_first, [False, False] + [True] * 7 + [False])
    np.testing.assert_array_equal(plan.shares_last, [False] + [True] * 7 + [False, False])


def test_refuses_numbers_below_one():
    row_ptr = jnp.asarray([0, 4])
    for bad in ((0, 4, 1), (1, 0, 1), (1, 4, 0)):
        with pytest.raises(ValueError, match="must be >= 1, got 0"):
            plan_tasks(row_ptr, *bad)
    with pytest.raises(ValueError, match="row_ptr must be"):
        plan_tasks(row_ptr[:1], 1, 4)
