"""Stacks of sign and low-rank blocks."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from compressjax.factorization import BitStack
from compressjax.leaf.sign_lowrank import SignLowRank, sign_lowrank, with_loaded
from compressjax.quantization import RTN

from .row_types import COLS, ROWS, LeafRow, MethodRow


def blocks(*, levels=3, rank=2, scaled=True, lead=(), seed=0) -> SignLowRank:
    """A random stack, its last block not loaded, places in an order of their own."""
    rng = np.random.default_rng(seed)
    w = sign_lowrank(
        jnp.asarray(rng.integers(0, 2, (*lead, levels, ROWS, COLS)), bool),
        jnp.asarray(rng.normal(size=(*lead, levels, ROWS, rank)), jnp.float16),
        jnp.asarray(rng.normal(size=(*lead, levels, rank, COLS)), jnp.float16),
        jnp.asarray(rng.gamma(2.0, size=(*lead, ROWS)) + 0.1, jnp.float16) if scaled else None,
    )
    return with_loaded(dataclasses.replace(w, slots=w.slots[..., ::-1]), levels - 1)


LEAVES = (
    LeafRow("sign-lowrank", lambda lead=(), seed=0: blocks(lead=lead, seed=seed)),
    LeafRow(
        "sign-lowrank-folded", lambda lead=(), seed=0: blocks(scaled=False, rank=1, lead=lead, seed=seed), slow=True
    ),
)
LEAF_TYPES: set[type] = {SignLowRank}

METHODS = (
    MethodRow(BitStack(levels=2, rank=1), RTN(bits=2, group=32), 2.31, small=BitStack(levels=2, rank=2)),
    MethodRow(
        BitStack(levels=2, rank=1, scale="none", svd="exact"),
        RTN(bits=2, group=64),
        2.23,
        small=BitStack(levels=2, rank=2, scale="none", svd="exact"),
        slow=True,
    ),
)
