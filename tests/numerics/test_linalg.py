"""The inverse factor is one, and a hopeless Hessian is said to be one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.linalg import (
    cholesky_many,
    cholesky_solve_many,
    hessian_factor,
    inverse_factor,
    quadratic,
)


def hessian(width, tokens, seed=0):
    x = np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32)
    return jnp.asarray(x.T @ x)


def test_inverse_factor_is_upper_and_inverts():
    h = hessian(24, 200)
    u = inverse_factor(h)
    np.testing.assert_array_equal(u, jnp.triu(u))
    np.testing.assert_allclose(u @ h @ u.T, np.eye(24), atol=2e-5)
    np.testing.assert_allclose(u.T @ u @ h, np.eye(24), atol=2e-4)


def test_well_conditioned_needs_one_attempt():
    h = hessian(16, 100)
    factor = hessian_factor(h, 0.01, 0.01)
    assert bool(factor.ok)
    assert float(factor.damp) == pytest.approx(0.01)
    added = 0.01 * float(jnp.mean(jnp.diagonal(h)))
    np.testing.assert_allclose(factor.damping, added, rtol=1e-6)
    np.testing.assert_allclose(factor.u @ (h + added * jnp.eye(16)) @ factor.u.T, np.eye(16), atol=2e-5)


def test_damping_rises_until_the_factor_exists():
    h = jnp.diag(jnp.asarray([1.0, 1.0, 1.0, -0.2], jnp.float32))
    factor = hessian_factor(h, 0.01, 0.05)
    mean = 0.7
    assert bool(factor.ok)
    assert float(factor.damp) * mean > 0.2
    assert (float(factor.damp) - 0.05) * mean <= 0.2 + 1e-6


def test_floor_is_the_last_resort_and_then_failure_is_flagged():
    tiny_mean = jnp.diag(jnp.asarray([1.0, 1.0, -1.9], jnp.float32))
    assert not bool(hessian_factor(tiny_mean, 0.01, 0.5).ok)
    rescued = hessian_factor(jnp.diag(jnp.asarray([1.0, 1.0, -0.05], jnp.float32)) * 1e-3, 0.01, 0.0)
    assert bool(rescued.ok)
    failed = hessian_factor(jnp.full((4, 4), jnp.nan, jnp.float32), 0.01, 0.5)
    assert not bool(failed.ok)
    np.testing.assert_array_equal(failed.u, np.eye(4))


def test_quadratic_is_the_output_error():
    x = jax.random.normal(jax.random.key(0), (50, 6))
    e = jax.random.normal(jax.random.key(1), (6, 3))
    np.testing.assert_allclose(quadratic(e, x.T @ x), jnp.sum((x @ e) ** 2), rtol=1e-5)


def test_many_small_factors_and_solves_equal_single_ones():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 2, 40, 7)).astype(np.float32)
    matrices = jnp.asarray(np.einsum("...ti,...tj->...ij", x, x) / 40)
    right = jnp.asarray(rng.standard_normal((5, 2, 7)), jnp.float32)
    lower = cholesky_many(matrices)
    np.testing.assert_allclose(lower, np.linalg.cholesky(np.asarray(matrices, np.float64)), atol=1e-5)
    found = cholesky_solve_many(lower, right)
    np.testing.assert_allclose(
        found,
        np.linalg.solve(np.asarray(matrices, np.float64), np.asarray(right)[..., None])[..., 0],
        rtol=1e-3,
        atol=1e-4,
    )


def test_one_matrix_that_is_not_positive_definite_spoils_only_itself():
    matrices = jnp.stack([jnp.eye(3), -jnp.eye(3)])
    lower = cholesky_many(matrices)
    assert np.isfinite(lower[0]).all() and np.isnan(lower[1]).any()
