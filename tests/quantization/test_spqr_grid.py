"""SpQR's grids: the leave-one-out shortcut against leaving each one out, and quantised statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.grids import Grid
from compressjax.quantization import SpQR
from compressjax.quantization.spqr_grid import (
    decode,
    encode,
    fit_group,
    grid_between,
    leave_one_out_gain,
    quantise_statistics,
)

gain = jax.jit(leave_one_out_gain, static_argnames="cfg")


@functools.partial(jax.jit, static_argnames="cfg")
def fit(rows, pivots, real, threshold, *, cfg, room=10**6):
    return fit_group(rows, pivots, real, threshold, jnp.int32(room), cfg)


statistics = jax.jit(quantise_statistics, static_argnames="cfg")


def rounded(x, bits, sym):
    """``x [n]`` in float64 on its own min-max grid."""
    low, high = x.min(), x.max()
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    if sym:
        high = max(abs(low), high)
        low = -high if low < 0 else low
    if low == high:
        return np.zeros_like(x)
    scale = (high - low) / (2**bits - 1)
    zero = 2 ** (bits - 1) if sym else -low / scale
    return scale * (np.clip(np.round(x / scale + zero), 0, 2**bits - 1) - zero)


def brute_gain(rows, pivots, bits, sym):
    """Leaves out one after the other."""
    rows, pivots = np.asarray(rows, np.float64), np.asarray(pivots, np.float64)

    def error(x, d):
        return (((rounded(x, bits, sym) - x) / d) ** 2).sum()

    n, cols = rows.shape
    return np.array(
        [
            [error(rows[:, o], pivots) - error(np.delete(rows[:, o], j), np.delete(pivots, j)) for o in range(cols)]
            for j in range(n)
        ]
    )


@pytest.mark.parametrize("bits, sym", [(3, False), (2, False), (3, True)])
def test_leaving_one_out_takes_three_fits(bits, sym):
    rng = np.random.default_rng(bits)
    # Sixteenths, so that no rounding is a close call that float32 and float64 might decide differently.
    rows = np.round(rng.standard_t(3, (16, 40)) * 16).astype(np.float32) / 16
    rows[5, 0] = rows[:, 0].min()  # ties at either end
    rows[7, 1] = rows[:, 1].max()
    rows[:, 2] = 0.25  # a constant group
    rows[:, 3] = 0.0
    rows[:15, 4] = 0.5  # constant but for one
    pivots = rng.uniform(0.5, 2, 16).astype(np.float32)
    cfg = SpQR(bits=bits, stat_bits=None, sym=sym)
    found = gain(jnp.asarray(rows), jnp.asarray(pivots)[:, None], jnp.ones((16, 1), bool), cfg=cfg)
    np.testing.assert_allclose(found, brute_gain(rows, pivots, bits, sym), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("real", [5, 2, 1])
def test_padding_takes_no_part(real):
    rng = np.random.default_rng(0)
    rows = np.zeros((16, 8), np.float32)
    rows[:real] = np.round(rng.standard_t(3, (real, 8)) * 16) / 16 + 4
    mask = jnp.arange(16)[:, None] < real
    cfg = SpQR(stat_bits=None)
    found = np.asarray(gain(jnp.asarray(rows), jnp.ones((16, 1)), mask, cfg=cfg))
    np.testing.assert_array_equal(found[real:], 0)
    if real > 1:
        np.testing.assert_allclose(found[:real], brute_gain(rows[:real], np.ones(real), 3, False), rtol=1e-3, atol=1e-4)
    _, grid = fit(jnp.asarray(rows), jnp.ones((16, 1)), mask, jnp.float32(jnp.inf), cfg=cfg)
    low, high = rows[:real].min(0), rows[:real].max(0)
    span = np.where(low == high, np.abs(high), high - low)
    np.testing.assert_allclose(grid.scale, span / 7, rtol=1e-3)


def test_grid_fits_without_a_weight_that_spoils_it():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 4)).astype(np.float32)
    rows[:2] = -3  # two lowest, so that only the highest weight moves the grid
    one = jnp.ones((16, 1))
    clean = rows.copy()
    clean[3] = np.delete(rows, 3, axis=0).mean(0)
    rows[3] = 50
    cfg = SpQR()
    _, spoilt = fit(jnp.asarray(rows), one, one > 0, jnp.float32(jnp.inf), cfg=cfg)
    # Above what the spoilt grid makes of any other weight, (step/2)², and below what leaving the large one out gains.
    _, saved = fit(jnp.asarray(rows), one, one > 0, jnp.float32(15.0), cfg=cfg)
    _, without = fit(jnp.asarray(clean), one, one > 0, jnp.float32(jnp.inf), cfg=cfg)
    np.testing.assert_allclose(saved.scale, without.scale, rtol=1e-5)
    assert bool(jnp.all(spoilt.scale > 5 * saved.scale))
    # Where there is no room to keep it, the grid has to reach it.
    _, full = fit(jnp.asarray(rows), one, one > 0, jnp.float32(15.0), cfg=cfg, room=3)
    np.testing.assert_array_equal(full.scale, spoilt.scale)


def test_a_group_of_outliers_only_is_fitted_as_it_is():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    one, cfg = jnp.ones((16, 1)), SpQR(stat_bits=None)
    _, grid = fit(rows, one, one > 0, jnp.float32(-1), cfg=cfg)
    _, plain = fit(rows, one, one > 0, jnp.float32(jnp.inf), cfg=cfg)
    np.testing.assert_array_equal(grid.scale, plain.scale)


def test_equal_weights_are_held_exactly():
    value = jnp.asarray([0.35, -0.35, 0.0])
    grid = grid_between(value, value, SpQR())
    got = decode(encode(value, grid, 3), grid)
    np.testing.assert_allclose(got, value, atol=1e-6)
    # Nor does their scale stand out among those of weights of that size.
    assert float(jnp.max(grid.scale)) <= 0.05 + 1e-6


def test_the_grid_does_not_reach_for_zero_unless_asked():
    low, high = jnp.asarray([2.0]), jnp.asarray([9.0])
    grid = grid_between(low, high, SpQR())
    np.testing.assert_allclose([grid.scale[0], grid.zero[0]], [1, -2])
    codes = encode(jnp.asarray([2.4, 9.0]), Grid(grid.scale, grid.zero), 3)
    np.testing.assert_array_equal(decode(codes, grid), [2, 9])
    wide = grid_between(low, high, SpQR(round_zero=True))
    np.testing.assert_allclose([wide.scale[0], wide.zero[0]], [9 / 7, 0])


@functools.cache
def some_grid(cols):
    rng = np.random.default_rng(0)
    return Grid(
        jnp.asarray(rng.uniform(0.01, 0.1, cols), jnp.float32), jnp.asarray(rng.uniform(1, 6, cols), jnp.float32)
    )


@pytest.mark.parametrize("cols", [32, 21, 1])
def test_statistics_are_within_half_a_step_of_their_run(cols):
    grid = some_grid(cols)
    found, decoded = statistics(grid, cfg=SpQR())
    for values, got in zip(grid, decoded, strict=True):
        for at in range(0, cols, 16):
            run, mine = np.asarray(values)[at : at + 16], np.asarray(got)[at : at + 16]
            step = (run.max() - run.min()) / 7
            assert np.max(np.abs(run - mine)) <= step * 0.51 + 1e-3 * np.abs(run).max()
    assert float(jnp.max(found.scale_codes)) <= 7 and float(jnp.min(found.scale_codes)) >= 0


def test_equal_statistics_are_exact_to_half_precision():
    grid = Grid(jnp.full((16,), 0.0123), jnp.full((16,), 3.456))
    _, decoded = statistics(grid, cfg=SpQR())
    np.testing.assert_allclose(decoded.scale, grid.scale, rtol=2e-3)
    np.testing.assert_allclose(decoded.zero, grid.zero, rtol=2e-3)


def test_integer_zeros_are_their_own_codes():
    grid = Grid(some_grid(16).scale, jnp.round(some_grid(16).zero))
    found, decoded = statistics(grid, cfg=SpQR(round_zero=True))
    np.testing.assert_array_equal(found.zero_codes, grid.zero)
    np.testing.assert_array_equal(decoded.zero, grid.zero)
