"""Layers compressed in different ways, each with a pool of its own as plain scans take them."""

import jax.numpy as jnp
import numpy as np

from compressjax.leaf import ByLayer, low_rank, pack_affine

from .row_types import COLS, ROWS, LeafRow


def choice(*, lead=(), seed=0) -> ByLayer:
    """Two 3-bit weights, one of low rank and one dense; layers pick among them."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    affine = pack_affine(
        jnp.asarray(rng.integers(0, 8, (*lead, 2, ROWS, COLS))),
        normal(2, 1, COLS).astype(jnp.float16),
        None,
        bits=3,
        group=-1,
        zero_kind="none",
    )
    thin = low_rank(normal(1, ROWS, 3), normal(1, 3, COLS))
    return ByLayer(
        variants=(affine, thin, normal(1, ROWS, COLS)),
        kind=jnp.asarray(rng.integers(0, 3, lead), jnp.int32),
        slot=jnp.zeros(lead, jnp.int32),
    )


LEAVES = (LeafRow("by-layer", choice),)
LEAF_TYPES: set[type] = {ByLayer}
METHODS = ()
