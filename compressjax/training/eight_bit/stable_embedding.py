"""An embedding whose gradients do not upset 8-bit optimizers.

Paper: Dettmers et al., 2022, arXiv 2110.02861, section 2.3: Xavier-uniform table, layer normalisation of what is looked
up, before positions are added, and optimizer states of the table in 32 bits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from compressjax.training.eight_bit.state_policy import leaf_name

TABLE = "embedding"


class StableEmbedding(nn.Module):
    """Layer-normalised rows of a table; add positions to what it returns, not before.

    Parameters: ``embedding [V, D]``, and ``norm/scale``, ``norm/bias`` ``[D]``. The default `StatePolicy` keeps the
    state of every parameter called "embedding" in float32.

    Attributes:
      num_embeddings: rows V.
      features: width D.
      dtype: of the result; the normalisation is computed in float32.
    """

    num_embeddings: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """``ids int [...] -> [..., D]``."""
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"ids must be integers, got {ids.dtype}")
        shape = (self.num_embeddings, self.features)
        table = self.param(TABLE, nn.initializers.xavier_uniform(), shape, jnp.float32)
        return nn.LayerNorm(dtype=jnp.float32, name="norm")(jnp.take(table, ids, axis=0)).astype(self.dtype)


def stable_embedding_label_fn(params: Any) -> Any:
    """Labels for `optax.multi_transform`: "32bit" for tables of embeddings, "8bit" for everything else.

    Only needed to give tables another optimizer; `StatePolicy` keeps their states in float32 by itself.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "32bit" if leaf_name(path).rpartition("/")[2] == TABLE else "8bit", params
    )
