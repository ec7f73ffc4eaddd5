import jax
import jax.numpy as jnp
import numpy as np

from compressjax.distributed.l_greco.orthonormal import orthonormal


def test_columns_are_orthonormal_and_span_the_same():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20, 6)), jnp.float32)
    q = np.asarray(jax.jit(orthonormal)(a))
    np.testing.assert_allclose(np.swapaxes(q, 1, 2) @ q, np.broadcast_to(np.eye(6), (3, 6, 6)), atol=2e-6)
    np.testing.assert_allclose(q @ (np.swapaxes(q, 1, 2) @ np.asarray(a)), a, atol=1e-5)


def test_zero_and_dependent_columns_are_replaced():
    one = np.random.default_rng(1).normal(size=20)
    a = jnp.asarray(np.stack([one, 0 * one, 2 * one, one + 1e-9], axis=1), jnp.float32)
    for matrix in (a, 0 * a):
        q = np.asarray(jax.jit(orthonormal)(matrix))
        np.testing.assert_allclose(q.T @ q, np.eye(4), atol=2e-6)
    assert abs(abs(np.asarray(orthonormal(a))[:, 0] @ one) / np.linalg.norm(one) - 1) < 1e-5
