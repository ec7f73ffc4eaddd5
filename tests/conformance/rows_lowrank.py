"""Products of thin matrices, alone and beside a compressed weight."""

import jax.numpy as jnp
import numpy as np

from compressjax.factorization import SVD, EoRA, LoRD
from compressjax.leaf import LowRank, PivotLowRank, low_rank, pivot_low_rank
from compressjax.quantization import RTN

from .row_types import COLS, ROWS, LeafRow, MethodRow


def thin(*, lead=(), seed=0) -> LowRank:
    rng = np.random.default_rng(seed)
    return low_rank(
        jnp.asarray(rng.normal(size=(*lead, ROWS, 5)) / 3, jnp.float32),
        jnp.asarray(rng.normal(size=(*lead, 5, COLS)) / 3, jnp.float32),
    )


def pivoted(*, lead=(), seed=0) -> PivotLowRank:
    rng = np.random.default_rng(seed)
    places = [rng.permutation(COLS) for _ in range(int(np.prod(lead)))]
    return pivot_low_rank(
        jnp.asarray(rng.normal(size=(*lead, ROWS, 5)) / 3, jnp.float32),
        jnp.asarray(rng.normal(size=(*lead, 5, COLS - 5)) / 3, jnp.float32),
        jnp.asarray(np.reshape(places, (*lead, COLS)), jnp.int32),
    )


LEAVES = (
    LeafRow("low-rank", lambda lead=(), seed=0: thin(lead=lead, seed=seed)),
    LeafRow("pivot low-rank", lambda lead=(), seed=0: pivoted(lead=lead, seed=seed)),
)
LEAF_TYPES: set[type] = {LowRank, PivotLowRank}

# 16 (576 + 192) r / (576 x 192) bits per weight for factors in 16 bits.
METHODS = (
    MethodRow(SVD(rank=48), None, 5.34, small=SVD(rank=8)),
    MethodRow(LoRD(rank=48), SVD(rank=48), 5.34, small=LoRD(rank=8)),
    MethodRow(
        EoRA(base=RTN(bits=3, group=64), rank=8),
        RTN(bits=4, group=-1),
        4.2,
        small=EoRA(base=RTN(bits=3, group=32), rank=4),
    ),
)
