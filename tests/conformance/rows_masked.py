"""Unstructured sparsity behind a bit mask."""

import jax.numpy as jnp
import numpy as np

from compressjax.leaf import Masked, pack_masked
from compressjax.sparsity import SparseGPT

from .row_types import COLS, ROWS, LeafRow, MethodRow


def masked(*, lead=(), seed=0) -> Masked:
    """A third of the weights kept, wherever they are."""
    rng = np.random.default_rng(seed)
    count, layers = ROWS * COLS // 3, []
    for _ in range(int(np.prod(lead, dtype=int))):
        keep = np.zeros(ROWS * COLS, bool)
        keep[rng.choice(ROWS * COLS, count, replace=False)] = True
        w = jnp.asarray(rng.normal(size=(ROWS, COLS)), jnp.float32)
        layers.append(pack_masked(w, jnp.asarray(keep.reshape(ROWS, COLS)), count))
    if not lead:
        return layers[0]
    return Masked(
        values=jnp.stack([w.values for w in layers]).reshape(*lead, count),
        mask=jnp.stack([w.mask for w in layers]).reshape(*lead, *layers[0].mask.shape),
        shape=(ROWS, COLS),
        tile=layers[0].tile,
    )


LEAVES = (LeafRow("masked", masked, rows=False),)
LEAF_TYPES: set[type] = {Masked}

_LARGEST = SparseGPT(score="magnitude", compensate=False)
METHODS = (
    MethodRow(SparseGPT(), _LARGEST, 9.0, small=SparseGPT()),
    MethodRow(SparseGPT(block=128), _LARGEST, 9.0, small=SparseGPT(block=16), slow=True),
)
