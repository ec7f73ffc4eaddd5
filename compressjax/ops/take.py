"""Rows of a weight, as an embedding look-up needs them."""

from typing import Any

import jax
import jax.numpy as jnp

from compressjax.dispatch import verb


@verb(on="w")
def take(w: Any, ids: jax.Array) -> jax.Array:
    """Rows ``w[ids]`` of a weight of logical shape ``[rows, width]``.

    Args:
      w: a dense array or a compressed leaf.
      ids: integer array of any shape.

    Returns:
      ``[*ids.shape, width]``.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@take.register(jax.Array)
def _take_dense(w, ids):
    return jnp.take(w, ids, axis=0)
