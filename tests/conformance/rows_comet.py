"""COMET's rows."""

import jax.numpy as jnp
import numpy as np

from compressjax.leaf import W4Ax, pack_w4ax
from compressjax.quantization import COMET, RTN

from .row_types import COLS, ROWS, LeafRow, MethodRow


def w4ax(*, block=32, n_hi=1, hi_bits=8, lo_bits=4, act_clip=1.0, permuted=True, lead=(), seed=0) -> W4Ax:
    """A random leaf; 72 inputs leave its last block short."""
    rng = np.random.default_rng(seed)
    perm = rng.permuted(np.broadcast_to(np.arange(ROWS), (*lead, ROWS)), axis=-1)
    return pack_w4ax(
        jnp.asarray(rng.integers(-8, 8, (*lead, ROWS, COLS))),
        jnp.asarray(rng.uniform(0.05, 0.2, size=(*lead, -(-ROWS // block), COLS)), jnp.float16),
        jnp.asarray(perm) if permuted else None,
        n_hi,
        block=block,
        hi_bits=hi_bits,
        lo_bits=lo_bits,
        act_clip=act_clip,
    )


def reads(x: np.ndarray, w: W4Ax) -> np.ndarray:
    """Rounds ``x`` token by token and block by block, in numpy."""
    order = np.arange(ROWS) if w.perm is None else np.asarray(w.perm).astype(int)
    out = np.zeros(x.shape, np.float32)
    for number, first in enumerate(range(0, ROWS, w.block)):
        own = order[first : first + w.block]
        limit = np.float32(2 ** ((w.hi_bits if number < int(w.n_hi) else w.lo_bits) - 1) - 1)
        peak = np.abs(x[:, own]).max(axis=1, keepdims=True)
        scale = np.where(peak == 0, np.float32(1), np.float32(w.act_clip) * peak / limit)
        out[:, own] = np.clip(np.round(x[:, own] / scale), -limit, limit) * scale
    return out


def _row(name, slow=False, **options):
    return LeafRow(
        name,
        lambda lead=(), seed=0: w4ax(lead=lead, seed=seed, **options),
        rows=False,
        tied=False,
        reads=reads,
        slow=slow,
    )


LEAVES = (
    _row("w4ax-mixed"),
    _row("w4ax-all-narrow", slow=True, n_hi=0, permuted=False),
    # At 16 bits what is read is x up to its own rounding: the law without an oracle in between.
    LeafRow(
        "w4ax-16bit",
        lambda lead=(), seed=0: w4ax(hi_bits=16, lo_bits=16, lead=lead, seed=seed),
        rows=False,
        tied=False,
        slow=True,
    ),
)
LEAF_TYPES: set[type] = {W4Ax}

_BASELINE = RTN(bits=4, group=64, sym=True)
METHODS = (
    MethodRow(COMET(block=64), _BASELINE, 4.34, COMET(block=32, max_hi_fraction=0.5)),
    MethodRow(
        COMET(block=64, rule="error", permute=False, weight_solver="rtn"),
        _BASELINE,
        4.34,
        COMET(block=32, max_hi_fraction=0.5, rule="error", permute=False, weight_solver="rtn"),
        slow=True,
    ),
)
