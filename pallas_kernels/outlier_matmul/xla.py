"""The sparse part in plain JAX."""

import jax
import jax.numpy as jnp

from pallas_kernels.outlier_matmul.outliers import Outliers

# Up to this many rows of activations, a gather per stored value is cheaper than a product with the dense matrix.
_FEW_ROWS = 16


def outlier_product(x: jax.Array, outliers: Outliers, cols: int) -> jax.Array:
    """``x @ outliers`` for ``x [m, rows]``, float32 ``[m, cols]``."""
    starts, inputs, values = outliers
    slots = jnp.arange(inputs.shape[0], dtype=jnp.int32)
    output = jnp.searchsorted(starts, slots, side="right").astype(jnp.int32) - 1
    values = values.astype(jnp.float32)
    if x.shape[0] <= _FEW_ROWS:
        terms = jnp.take(x.astype(jnp.float32), inputs.astype(jnp.int32), axis=1) * values[None]
        return jax.ops.segment_sum(terms.T, output, cols, indices_are_sorted=True).T
    dense = jnp.zeros((x.shape[1], cols), jnp.float32)
    dense = dense.at[inputs.astype(jnp.int32), output].add(values, mode="drop")
    return jnp.matmul(x, dense.astype(x.dtype), preferred_element_type=jnp.float32)
