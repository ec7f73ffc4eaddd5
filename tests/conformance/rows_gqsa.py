"""Group-sparse and N:M leaves and their methods."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.leaf import pack_affine
from compressjax.leaf.group_sparse import GroupSparse, pack_group_sparse
from compressjax.leaf.n_m import NMSparse, pack_n_m
from compressjax.sparsity import GQSA, NM

from .row_types import COLS, ROWS, LeafRow, MethodRow


def group_sparse(
    rows=ROWS, cols=COLS, *, bits=4, group=8, layout="ell", zero_kind="int", share=0.5, lead=(), seed=0
) -> GroupSparse:
    """A random group-sparse leaf; in layout "bsr" outputs keep any number of groups, some none."""
    rng = np.random.default_rng(seed)
    groups = rows // group
    count = int(np.prod(lead))

    def kept():
        if layout == "ell":
            many = max(1, round(share * groups))
            return np.stack([np.sort(rng.permutation(groups)[:many]) for _ in range(cols)], axis=1)
        # The first outputs crowd the list, so that the last ones keep nothing.
        order = np.argsort(rng.random(groups * cols) + np.arange(groups * cols) / (groups * cols))
        return np.sort(order[: max(1, round(share * groups * cols))])

    zero = rng.integers(0, 2**bits, (count, groups, cols))
    if zero_kind == "real":
        zero = rng.normal(size=zero.shape).astype(np.float16)
    arrays = (
        rng.integers(0, 2**bits, (count, rows, cols)),
        rng.normal(size=(count, groups, cols)).astype(np.float16),
        zero,
        np.stack([kept() for _ in range(count)]).astype(np.int32),
    )

    def pack(codes, scale, zero, kept):
        return pack_group_sparse(codes, scale, zero, kept, bits=bits, group=group, layout=layout, zero_kind=zero_kind)

    packed = jax.vmap(pack)(*(jnp.asarray(a) for a in arrays))
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), packed)


def n_m_sparse(rows=ROWS, cols=COLS, *, n=2, m=4, bits=4, group=24, lead=(), seed=0) -> NMSparse:
    """A random N:M leaf."""
    rng, short = np.random.default_rng(seed), rows // m * n
    values = pack_affine(
        jnp.asarray(rng.integers(0, 2**bits, (*lead, short, cols))),
        jnp.asarray(rng.normal(size=(*lead, rows // group, cols)), jnp.float16),
        jnp.asarray(rng.integers(0, 2**bits, (*lead, rows // group, cols))),
        bits=bits,
        group=group // m * n,
        zero_kind="int",
    )
    ranks = rng.random((*lead, rows // m, m, cols))
    positions = np.sort(np.argsort(ranks, axis=-2)[..., :n, :], axis=-2)
    return pack_n_m(values, jnp.asarray(positions.reshape(*lead, short, cols), jnp.int32), n=n, m=m)


def _group_row(name, slow=False, **options):
    return LeafRow(name, lambda lead=(), seed=0: group_sparse(lead=lead, seed=seed, **options), rows=False, slow=slow)


LEAVES = (
    _group_row("group-sparse-ell"),
    _group_row("group-sparse-bsr", layout="bsr"),
    _group_row("group-sparse-real-zero", slow=True, layout="bsr", zero_kind="real", bits=8, group=12),
    LeafRow("n-m", lambda lead=(), seed=0: n_m_sparse(lead=lead, seed=seed), rows=False),
)
LEAF_TYPES: set[type] = {GroupSparse, NMSparse}

METHODS = (
    MethodRow(GQSA(scope="row"), GQSA(scope="row", refine=0), 2.875),
    MethodRow(GQSA(), GQSA(scope="row"), 2.94, slow=True),
    MethodRow(NM(), NM(score="magnitude", init="mask"), 3.18),
)
