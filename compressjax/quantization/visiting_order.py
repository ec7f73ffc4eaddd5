"""In which order GPTQ visits the inputs."""

import jax
import jax.numpy as jnp


def visiting_order(diagonal: jax.Array, order: str, group: int) -> jax.Array:
    """Permutation of the inputs, most important first in the sense of ``order``.

    Args:
      diagonal: Hessian diagonal ``[in]``.
      order: "none"; "act", by falling diagonal; "group_aware", by falling diagonal inside each group and then whole
        groups by their largest entry, so that groups stay together and need no index (GAR); a short last group
        stays last.
      group: inputs per group.

    Returns:
      int32 ``[in]``; entry ``j`` is the input visited ``j``-th.
    """
    width = diagonal.shape[0]
    if order == "none":
        return jnp.arange(width, dtype=jnp.int32)
    if order == "act":
        return jnp.argsort(-diagonal, stable=True).astype(jnp.int32)
    whole = width // group * group
    blocks = diagonal[:whole].reshape(-1, group)
    inside = jnp.argsort(-blocks, axis=1, stable=True)
    outside = jnp.argsort(-jnp.max(blocks, axis=1), stable=True)
    head = (inside + jnp.arange(blocks.shape[0])[:, None] * group)[outside].reshape(-1)
    tail = whole + jnp.argsort(-diagonal[whole:], stable=True)
    return jnp.concatenate([head, tail]).astype(jnp.int32)
