import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.factorization import (
    BitStack,
    curvature_gains,
    greedy_order,
    levelwise_order,
    lowrank,
    order_from_gains,
)
from compressjax.leaf.sign_lowrank import with_loaded
from compressjax.ops import dense

GAINS = np.asarray([[5.0, 1.0], [9.0, 2.0], [7.0, 3.0]])


def separable(levels):
    """A loss that falls by ``GAINS[m, b]`` with each block."""
    return 100.0 - sum(GAINS[m, : count - 1].sum() for m, count in enumerate(levels))


def test_levelwise_sorts_each_level_by_the_loss_after_one_block():
    calls = []
    order = levelwise_order(separable, 3, 3, progress=lambda *at: calls.append(at))
    assert order.tolist() == [1, 2, 0, 2, 1, 0] and order.dtype == np.int32
    assert calls[-1] == (6, 6)


def test_bytes_change_the_order_of_a_level():
    order = levelwise_order(separable, 3, 3, block_bytes=[1, 10, 2])
    assert order.tolist() == [0, 2, 1, 2, 0, 1]  # gains per byte 5, .9, 3.5 and 1, .2, 1.5


def test_greedy_takes_the_best_per_byte_and_keeps_blocks_in_turn():
    assert greedy_order(separable, 3, 3, [1, 1, 1]).tolist() == [1, 2, 0, 2, 1, 0]
    assert greedy_order(separable, 3, 3, [1, 10, 2]).tolist() == [0, 2, 2, 0, 1, 1]


@pytest.mark.parametrize("size", [[1, 1, 1], [1, 10, 2]])
def test_gains_give_the_greedy_order_of_a_separable_loss(size):
    assert order_from_gains(GAINS, size).tolist() == greedy_order(separable, 3, 3, size).tolist()
    levelwise = levelwise_order(separable, 3, 3, block_bytes=size)
    assert order_from_gains(GAINS, size, levelwise=True).tolist() == levelwise.tolist()


def test_a_useless_block_does_not_hold_back_the_one_behind_it():
    gains = [[0.0, 10.0], [3.0, 1.0]]  # pooled: 5, 5 against 3, 1
    assert order_from_gains(gains, [1, 1]).tolist() == [0, 0, 1, 1]
    assert order_from_gains(np.zeros((2, 2)), [1, 1]).tolist() == [0, 1, 0, 1]


def test_nan_sorts_last_in_its_level():
    def loss(levels):
        return np.nan if list(levels) == [1, 2, 1] else separable(levels)

    assert levelwise_order(loss, 3, 3).tolist() == [2, 0, 1, 2, 1, 0]


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda at: np.nan if at[1] == 3 else 1.0, r"NaN at the last level for matrices \[1\]"),
        (lambda at: np.nan, "every loss of level 2 is NaN"),
    ],
)
def test_nan_that_cannot_be_sorted_is_an_error(loss, message):
    with pytest.raises(ValueError, match=message):
        levelwise_order(loss, 3, 3)
    with pytest.raises(ValueError, match="NaN"):
        greedy_order(lambda at: np.nan, 3, 3, [1, 1, 1])


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="levels and matrices must be >= 1, got 0 and 3"):
        levelwise_order(separable, 0, 3)
    with pytest.raises(ValueError, match="gains must be"):
        order_from_gains(GAINS, [1, 1])
    with pytest.raises(ValueError, match=r"gains of matrices \[2\] are NaN"):
        order_from_gains(np.where(GAINS == 7, np.nan, GAINS), [1, 1, 1])


def problem():
    """Weights, and statistics of a loss ``1/2 sum_o G_oo e_oᵀ H e_o`` per matrix."""
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": jnp.asarray(rng.normal(size=(2, 12, 8)), jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(1, 12, 8)), jnp.float32)},
    }
    inputs, fisher, outputs = {}, {}, {}
    for name, layers, weight in (("a", 2, [1.0, 20.0]), ("b", 1, [5.0])):
        x = rng.normal(size=(layers, 30, 12)).astype(np.float32)
        h = jnp.asarray(np.einsum("lni,lnj->lij", x, x))
        g = rng.gamma(1.0, size=(layers, 8)) * np.asarray(weight)[:, None]
        squares = np.diagonal(np.asarray(h), axis1=1, axis2=2)[:, :, None] * g[:, None]
        path = f"{name}/kernel"
        inputs[path], fisher[path] = Record(xtx=h), Record(fisher=jnp.asarray(squares, jnp.float32))
        outputs[path] = g
    return params, inputs, fisher, outputs


def test_curvature_gains_are_exact_for_a_quadratic_loss():
    params, inputs, fisher, outputs = problem()
    small = lowrank(params, BitStack(levels=3, rank=1, scale="none"))
    stacks = {f"{p}/kernel": small[p]["kernel"] for p in ("a", "b")}
    gains = curvature_gains(params, stacks, inputs, fisher)
    assert gains.shape == (3, 2)

    def at(levels):
        total = 0.0
        for path, own in (("a/kernel", levels[:2]), ("b/kernel", levels[2:])):
            error = np.asarray(params[path[0]]["kernel"] - dense(with_loaded(stacks[path], own)), np.float64)
            h = np.asarray(inputs[path].xtx, np.float64)
            total += 0.5 * np.einsum("lio,lij,ljo,lo->", error, h, error, outputs[path])
        return total

    for level in (1, 2):
        start = at(np.full(3, level))
        for m in range(3):
            raised = np.full(3, level)
            raised[m] += 1
            np.testing.assert_allclose(gains[m, level - 1], start - at(raised), rtol=1e-3)
    assert order_from_gains(gains, [1, 1, 1], levelwise=True).tolist() == levelwise_order(at, 3, 3).tolist()


def test_curvature_gains_refuse_what_they_cannot_weigh():
    params, inputs, fisher, _ = problem()
    small = lowrank(params, BitStack(levels=2, rank=1, scale="none"))
    stacks = {"a/kernel": small["a"]["kernel"]}
    with pytest.raises(ValueError, match="needs Hessian and Fisher statistics of a/kernel"):
        curvature_gains(params, stacks, inputs, {})
    shorter = dataclasses.replace(stacks["a/kernel"], slots=stacks["a/kernel"].slots[:, :1])
    mixed = stacks | {"b/kernel": shorter}
    with pytest.raises(ValueError, match=r"one number of levels, got \[1, 2\]"):
        curvature_gains(params, mixed, inputs, fisher)
