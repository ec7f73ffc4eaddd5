"""Orthonormal columns without LAPACK."""

import jax
import jax.numpy as jnp


def orthonormal(a: jax.Array) -> jax.Array:
    """Orthonormal columns that span those of ``a``, by Gram-Schmidt with every projection done twice.

    Columns that are zero, or lie in the span of the ones before, are replaced by random directions, alike on all
    workers, so that a factor which once met a zero gradient is not lost for good.

    LAPACK's routines are not called on purpose: on several virtual CPU devices a batched call waits for helpers in the
    pool that all devices share, and the calls of the devices can wait for each other for ever (jaxlib 0.10). The
    columns number a rank, at most some tens.

    Args:
      a: float32 ``[..., n, r]``, r <= n.

    Returns:
      ``[..., n, r]``.
    """
    fresh = jax.random.normal(jax.random.key(0), a.shape[-2:], a.dtype)

    def outside(q, column):
        for _ in range(2):
            column = column - jnp.einsum("...nr,...r->...n", q, jnp.einsum("...nr,...n->...r", q, column))
        return column

    def step(j, q):
        column = jax.lax.dynamic_index_in_dim(a, j, axis=-1, keepdims=False)
        left = outside(q, column)
        before, after = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (column, left))
        spare = outside(
            q, jnp.broadcast_to(jax.lax.dynamic_index_in_dim(fresh, j, axis=-1, keepdims=False), left.shape)
        )
        left = jnp.where(after > 1e-5 * before, left, spare)
        unit = left / jnp.linalg.norm(left, axis=-1, keepdims=True)
        return jax.lax.dynamic_update_index_in_dim(q, unit, j, axis=-1)

    return jax.lax.fori_loop(0, a.shape[-1], step, jnp.zeros_like(a))
