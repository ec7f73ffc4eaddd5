"""The sweep's identities hold exactly, whatever the block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.linalg import inverse_factor
from compressjax.numerics.sweep import sweep

STEP = 0.25


def nearest(row, i, state):
    codes = jnp.round(row / STEP)
    return codes * STEP, codes, state


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 24)) @ rng.normal(size=(24, 24))
    h = jnp.asarray(x.T @ x / 300, jnp.float32)
    return jnp.asarray(rng.normal(size=(24, 6)), jnp.float32), h, inverse_factor(h)


def test_error_identities(problem):
    w, h, u = problem
    out = sweep(w, u, nearest, block=8)
    np.testing.assert_allclose(w - out.weight, u.T @ out.errors, atol=1e-4)
    miss = w - out.weight
    np.testing.assert_allclose(jnp.sum(out.errors**2), jnp.sum(miss * (h @ miss)), rtol=1e-3)
    np.testing.assert_array_equal(out.weight, out.codes * STEP)


@pytest.mark.parametrize("block", [1, 5, 8, 24, 100])
@pytest.mark.parametrize("with_drift", [False, True])
def test_independent_of_block(problem, block, with_drift):
    w, h, u = problem
    drift = jnp.triu(0.05 * jax.random.normal(jax.random.key(1), h.shape), 1) if with_drift else None
    one = sweep(w, u, nearest, block=24, drift=drift)
    other = sweep(w, u, nearest, block=block, drift=drift)
    np.testing.assert_array_equal(one.codes, other.codes)


def test_each_row_is_the_minimiser_given_the_rows_before(problem):
    w, h, u = problem
    seen = {}

    def record(row, i, state):
        q, codes, _ = nearest(row, i, None)
        return q, codes, state.at[i].set(row)

    out = sweep(w, u, record, jnp.zeros_like(w), block=8)
    seen = np.asarray(out.state)
    for i in (1, 7, 8, 15, 23):
        # Minimise tr((W-Q)ᵀH(W-Q)) over rows i.. with rows before i fixed at their rounded values.
        fixed = np.asarray(w - out.weight)[:i]
        free = -np.linalg.solve(np.asarray(h)[i:, i:], np.asarray(h)[i:, :i] @ fixed)
        np.testing.assert_allclose(seen[i], np.asarray(w)[i] - free[0], atol=2e-3)


def test_start_block_sees_updated_rows(problem):
    w, h, u = problem

    def start(rows, b, state):
        return state.at[b].set(rows)

    out = sweep(w, u, nearest, jnp.zeros((3, 8, 6)), block=8, start_block=start)
    first = np.asarray(out.weight)[:8]
    free = -np.linalg.solve(np.asarray(h)[8:, 8:], np.asarray(h)[8:, :8] @ (np.asarray(w)[:8] - first))
    np.testing.assert_allclose(out.state[1], np.asarray(w)[8:16] - free[:8], atol=2e-3)


def test_trace_does_not_grow_with_width():
    def equations(width):
        jaxpr = jax.make_jaxpr(lambda w, u: sweep(w, u, nearest, block=16))(jnp.ones((width, 4)), jnp.eye(width))
        return str(jaxpr).count(" = ")

    assert equations(64) == equations(256)
