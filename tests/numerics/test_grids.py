"""Grids hold zero, cover what they should, and the searches never do worse than where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax.numerics import grids


def error(w, grid, bits, norm=2.4):
    return jnp.sum(jnp.abs(grids.decode(grids.encode(w, grid, bits), grid) - w) ** norm, axis=-2)


def wide(grid):
    return grids.Grid(grid.scale[..., None, :], grid.zero[..., None, :])


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), sym=st.booleans(), seed=st.integers(0, 99), shift=st.floats(-2, 2))
def test_zero_is_exact_and_errors_are_half_a_step(bits, sym, seed, shift):
    w = jnp.asarray(np.random.default_rng(seed).normal(shift, 1, (16, 3)), jnp.float32)
    grid = wide(grids.minmax_grid(w, bits, sym=sym))
    assert float(jnp.max(jnp.abs(grids.decode(grids.encode(jnp.zeros_like(w), grid, bits), grid)))) == 0
    miss = jnp.abs(grids.decode(grids.encode(w, grid, bits), grid) - w)
    # The symmetric top code is one short of the mirrored end, and an integer zero moves ends by up to half a step.
    assert bool(jnp.all(miss <= grid.scale * 1.02))


def test_symmetric_mirrors_all_positive_groups():
    grid = grids.minmax_grid(jnp.asarray([[0.5], [1.0]]), 4, sym=True, dtype="float32")
    np.testing.assert_allclose(grid.scale, 2.0 / 15, rtol=1e-6)
    assert float(grid.zero[0]) == 8


def test_all_zero_group_gets_a_finite_grid():
    grid = grids.minmax_grid(jnp.zeros((4, 2)), 3)
    assert bool(jnp.all(jnp.isfinite(grid.scale))) and bool(jnp.all(grid.scale > 0))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sym", [False, True])
def test_mse_search_is_never_worse_and_matches_brute_force(bits, sym):
    w = jax.random.t(jax.random.key(bits), 3.0, (64, 5))
    plain, best = grids.minmax_grid(w, bits, sym=sym), grids.mse_grid(w, bits, sym=sym)
    assert bool(jnp.all(error(w, wide(best), bits) <= error(w, wide(plain), bits) * (1 + 1e-6)))
    assert bool(jnp.any(error(w, wide(best), bits) < error(w, wide(plain), bits)))
    low, high = np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)
    if sym:
        high = np.maximum(-low, high)
        low = -high
    losses = []
    for i in range(80):
        shrink = np.float32(1) - np.float32(i) / np.float32(100)
        scale = ((high - low) * shrink / (2**bits - 1)).astype(np.float16).astype(np.float32)
        exact = -low * shrink / scale
        zeros = [np.full_like(scale, 2 ** (bits - 1))] if sym else [np.round(exact)]
        if bits == 2 and not sym:
            zeros += [np.floor(exact), np.ceil(exact)]
        for zero in zeros:
            zero = np.clip(zero, 0, 2**bits - 1)
            losses.append(np.asarray(error(w, grids.Grid(jnp.asarray(scale)[None], jnp.asarray(zero)[None]), bits)))
    np.testing.assert_allclose(error(w, wide(best), bits), np.min(losses, axis=0), rtol=2e-3)


def test_weighted_search_follows_the_weights():
    w = jax.random.normal(jax.random.key(0), (64, 2))
    heavy = jnp.where(jnp.arange(64) < 32, 100.0, 1.0)[:, None]
    plain = wide(grids.mse_grid(w, 3, norm=2.0))
    ours = wide(grids.mse_grid(w, 3, norm=2.0, weight=heavy))
    miss = lambda g: jnp.sum(heavy * (grids.decode(grids.encode(w, g, 3), g) - w) ** 2, axis=0)  # noqa: E731
    assert bool(jnp.all(miss(ours) <= miss(plain)))


def test_scales_have_their_stored_precision():
    grid = grids.minmax_grid(jax.random.normal(jax.random.key(0), (8, 4)), 4, dtype="float16")
    np.testing.assert_array_equal(grid.scale, grid.scale.astype(jnp.float16).astype(jnp.float32))


def test_grouped_pads_the_last_group_with_zeros():
    blocks = grids.grouped(jnp.arange(10, dtype=jnp.float32)[:, None], 4)
    assert blocks.shape == (3, 4, 1)
    assert blocks[2, :, 0].tolist() == [8, 9, 0, 0]
