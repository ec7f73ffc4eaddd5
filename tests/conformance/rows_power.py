"""Rows of the power-exponent family."""

import jax.numpy as jnp
import numpy as np

from compressjax.leaf.power import Power, pack_power
from compressjax.quantization import NUPES, RTN, PowerQuant

from .row_types import COLS, ROWS, LeafRow, MethodRow


def power(*, bits=4, group=24, tensor=False, lead=(), seed=0) -> Power:
    """A random power leaf."""
    rng = np.random.default_rng(seed)
    n = 2 ** (bits - 1) - 1
    scale = (1, 1) if tensor else (-(-ROWS // group), COLS)
    return pack_power(
        jnp.asarray(rng.integers(-n, n + 1, (*lead, ROWS, COLS)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, (*lead, *scale)), jnp.float16),
        jnp.asarray(rng.uniform(0.3, 1, lead), jnp.float32),
        bits=bits,
        group=-1 if tensor else group,
    )


LEAVES = (
    LeafRow("power-4bit", lambda lead=(), seed=0: power(lead=lead, seed=seed)),
    LeafRow("power-3bit-tensor", lambda lead=(), seed=0: power(bits=3, tensor=True, lead=lead, seed=seed), slow=True),
)
LEAF_TYPES = {Power}
METHODS = (
    MethodRow(PowerQuant(bits=4), RTN(bits=4, group=-1), 4.03),
    MethodRow(
        NUPES(bits=3, group=64, steps=60), PowerQuant(bits=3, group=64), 3.26, small=NUPES(bits=3, group=32, steps=20)
    ),
)
