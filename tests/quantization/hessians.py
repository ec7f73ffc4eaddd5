"""Layer inputs and weights that the quantisation tests share."""

import jax.numpy as jnp
import numpy as np

from compressjax.calibration import Record


def correlated(width, tokens=400, rank=None, seed=0):
    """A record of correlated inputs, with channels of very different size."""
    rng = np.random.default_rng(seed)
    rank = width if rank is None else rank
    x = rng.normal(size=(tokens, rank)) @ rng.normal(size=(rank, width)) / np.sqrt(rank)
    x = (x * np.exp(rng.normal(size=width))).astype(np.float32)
    return Record(count=jnp.float32(tokens), xtx=jnp.asarray(x.T @ x)), jnp.asarray(x)


def weight(rows, cols, seed=1):
    """A heavy-tailed weight."""
    return jnp.asarray(np.random.default_rng(seed).standard_t(5, (rows, cols)), jnp.float32) / 8
