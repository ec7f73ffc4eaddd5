"""Chains of cores: matrix product operators."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.factorization import SVD, CompactifAI
from compressjax.leaf import TensorTrain, tensor_train
from compressjax.quantization import RTN
from compressjax.quantization.rtn import rtn

from .row_types import COLS, ROWS, LeafRow, MethodRow


def chain(*, lead=(), seed=0) -> TensorTrain:
    """Three sites for 84 by 48 that stand for 72 by 40, bonds 4 and 7; one core in floats, two in 8 bits."""
    rng = np.random.default_rng(seed)
    shapes = ((3, 2 * 4), (4 * 4, 4 * 7), (7 * 7, 6))
    first, *others = (jnp.asarray(rng.normal(size=(*lead, *s)) / 2, jnp.float32) for s in shapes)
    return tensor_train([first, *map(_in_8_bits, others)], (3, 4, 7), (2, 4, 6), (ROWS, COLS))


def _in_8_bits(core):
    return rtn(core, RTN(bits=8, group=16)) if core.ndim == 2 else jax.lax.map(_in_8_bits, core)


LEAVES = (LeafRow("tensor-train", chain),)
LEAF_TYPES: set[type] = {TensorTrain}

# The paper's own combination, fewer numbers and few bits for each, against the plain SVD in sixteen bits. At as many
# numbers of as many bits the SVD has the smaller output error on this weight.
METHODS = (
    MethodRow(
        CompactifAI(param_ratio=0.9, cores=RTN(bits=4, group=64)),
        SVD(rank=36),
        4.0,
        small=CompactifAI(max_bond=8),
    ),
)
