"""Components of outputs, and tables with a row that all rows share."""

import jax.numpy as jnp
import numpy as np

from compressjax.factorization.afm import AFM
from compressjax.factorization.svd import SVD
from compressjax.leaf import Shifted, low_rank, shifted

from .row_types import COLS, ROWS, LeafRow, MethodRow


def table(*, lead=(), seed=0) -> Shifted:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(*lead, ROWS, 4)), rng.normal(size=(*lead, 4, COLS))
    product = low_rank(jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32))
    return shifted(product, jnp.asarray(rng.normal(size=(*lead, COLS)), jnp.float32))


LEAVES = (LeafRow("shifted", table),)
LEAF_TYPES: set[type] = {Shifted}

# Not centred, for the laws look at the kernel alone and the mean is put right in the bias.
METHODS = (MethodRow(AFM(rank=48, center=False), SVD(rank=48), 5.34, small=AFM(rank=8, center=False)),)
