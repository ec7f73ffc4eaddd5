"""Weights with single outliers beside them: SpQR's and SqueezeLLM's leaves and methods."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.leaf import Outliers, Sum, TwoLevelAffine, add, pack_outliers, pack_two_level
from compressjax.quantization import GPTQ, RTN, SpQR, SqueezeLLM

from .row_types import COLS, ROWS, LeafRow, MethodRow


def outliers(rows=ROWS, cols=COLS, *, share=0.05, spare=7, lead=(), seed=0) -> Outliers:
    """Random outliers: any number per output, some outputs without, and slots that stay empty."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(lead))
    # Most in the first outputs; their number differs from layer to layer.
    chance = np.linspace(2 * share, 0, cols)[None, None]
    where = rng.random((count, rows, cols)) < chance
    capacity = round(2 * share * rows * cols) + spare
    values = jnp.asarray(rng.normal(size=where.shape) * 3, jnp.float16)
    packed = jax.vmap(lambda m, v: pack_outliers(m, v, capacity))(jnp.asarray(where), values)
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), packed)


def two_level(
    rows=ROWS,
    cols=COLS,
    *,
    bits=3,
    stat_bits=3,
    group=16,
    stat_group=16,
    integer_zeros=False,
    perm=False,
    lead=(),
    seed=0,
) -> TwoLevelAffine:
    """A random leaf with quantised statistics; neither the last group nor the last run of outputs is whole."""
    rng = np.random.default_rng(seed)
    groups, runs = -(-rows // group), -(-cols // stat_group)
    zero_bits = bits if integer_zeros else stat_bits

    def half(low, high):
        return jnp.asarray(rng.uniform(low, high, (*lead, groups, runs)), jnp.float16)

    order = rng.random((*lead, rows)).argsort(axis=-1)
    return pack_two_level(
        jnp.asarray(rng.integers(0, 2**bits, (*lead, rows, cols))),
        jnp.asarray(rng.integers(0, 2**stat_bits, (*lead, groups, cols))),
        jnp.asarray(rng.integers(0, 2**zero_bits, (*lead, groups, cols))),
        (half(0.01, 0.1), half(-3, -1)),
        None if integer_zeros else (half(0.1, 1), half(-3, 3)),
        bits=bits,
        scale_bits=stat_bits,
        zero_bits=zero_bits,
        group=group,
        stat_group=stat_group,
        perm=jnp.asarray(order, jnp.int32) if perm else None,
    )


def spqr_weight(*, lead=(), seed=0) -> Sum:
    """What SpQR makes of a weight."""
    return add(two_level(perm=True, lead=lead, seed=seed), outliers(lead=lead, seed=seed + 1))


LEAVES = (
    LeafRow("outliers", outliers),
    LeafRow("two-level-3bit", two_level),
    LeafRow(
        "two-level-integer-zeros",
        lambda lead=(), seed=0: two_level(bits=2, stat_bits=4, integer_zeros=True, lead=lead, seed=seed),
        slow=True,
    ),
    LeafRow("spqr-sum", spqr_weight),
)
LEAF_TYPES: set[type] = {Outliers, TwoLevelAffine}
METHODS = (
    # The baseline's groups cost 16 + 3 bits each: 4.19 bits per weight.
    MethodRow(SpQR(bits=3, outlier_share=0.01, damp=0.01), GPTQ(bits=3, group=16), 4.1, small=SpQR(order="identity")),
    MethodRow(
        SqueezeLLM(bits=3),
        RTN(bits=3, group=40, grid="mse"),
        3.45,
        small=SqueezeLLM(iterations=5, starts=("quantile",)),
    ),
    MethodRow(
        SqueezeLLM(bits=3, fisher="act", outlier_share=0, sensitive_share=0, refine="sweep"),
        GPTQ(bits=3, group=64),
        3.23,
        small=SqueezeLLM(fisher="act", outlier_share=0.01, refine="sweep", iterations=5, starts=("quantile",)),
        slow=True,
    ),
)
