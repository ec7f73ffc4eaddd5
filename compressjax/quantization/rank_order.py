"""An order of inputs that puts those with like-ranked weights next to each other."""

import jax
import jax.numpy as jnp


def spearman_order(w: jax.Array) -> jax.Array:
    """A greedy chain of inputs by rank correlation, from input 0 to whichever unvisited input is most like the last.

    Args:
      w: ``[in, out]``.

    Returns:
      int32 ``[in]``; entry ``j`` is the input visited ``j``-th.
    """
    width = w.shape[0]
    ranks = jnp.argsort(jnp.argsort(w, axis=1), axis=1).astype(jnp.float32)
    ranks = ranks - jnp.mean(ranks, axis=1, keepdims=True)
    alike = jnp.matmul(ranks, ranks.T, precision="highest")

    def step(carry, _):
        last, left = carry
        nearest = jnp.argmax(jnp.where(left, alike[last], -jnp.inf)).astype(jnp.int32)
        return (nearest, left.at[nearest].set(False)), nearest

    left = jnp.ones((width,), bool).at[0].set(False)
    _, rest = jax.lax.scan(step, (jnp.int32(0), left), None, length=width - 1)
    return jnp.concatenate([jnp.zeros((1,), jnp.int32), rest])
