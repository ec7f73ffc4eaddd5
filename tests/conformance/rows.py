"""Every leaf and every config of the library, with what the laws need to test it. A type without a row fails."""

import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from compressjax.leaf import Affine, Codebook, Sum, Transposed, add, pack_affine, pack_codebook
from compressjax.quantization import GPTQ, RTN

from .row_types import COLS, ROWS, LeafRow, MethodRow


def _rng(seed=0):
    return np.random.default_rng(seed)


def affine(rows=ROWS, cols=COLS, *, bits=4, group=32, zero_kind="int", lead=(), g_idx=False, seed=0) -> Affine:
    """A random affine leaf; negative scales included."""
    rng = _rng(seed)
    groups = 1 if group == -1 else -(-rows // group)
    zero = {
        "int": jnp.asarray(rng.integers(0, 2**bits, (*lead, groups, cols))),
        "real": jnp.asarray(rng.normal(size=(*lead, groups, cols)), jnp.float16),
        "none": None,
    }[zero_kind]
    index = jnp.asarray(rng.integers(0, groups, (*lead, rows)), jnp.int32) if g_idx else None
    return pack_affine(
        jnp.asarray(rng.integers(0, 2**bits, (*lead, rows, cols))),
        jnp.asarray(rng.normal(size=(*lead, groups, cols)), jnp.float16),
        zero,
        bits=bits,
        group=group,
        zero_kind=zero_kind,
        g_idx=index,
    )


def codebook(rows=ROWS, cols=COLS, *, levels=8, group=-1, lead=(), seed=0) -> Codebook:
    """A random codebook leaf."""
    rng = _rng(seed)
    groups = 1 if group == -1 else -(-rows // group)
    table = np.sort(rng.normal(size=(*lead, groups, levels, cols)), axis=-2)
    codes = rng.integers(0, levels, (*lead, rows, cols))
    return pack_codebook(jnp.asarray(codes), jnp.asarray(table, jnp.float16), group=group)


def total(*, lead=(), seed=0) -> Sum:
    """Quantised plus dense plus codebook."""
    rest = jnp.asarray(_rng(seed + 9).normal(size=(*lead, ROWS, COLS)), jnp.float32)
    return add(affine(lead=lead, seed=seed), rest, codebook(lead=lead, seed=seed))


def transposed(*, lead=(), seed=0) -> Transposed:
    """An embedding kept along its width."""
    return Transposed(inner=affine(COLS, ROWS, group=20, lead=lead, seed=seed))


def _affine_row(name, slow=False, **options):
    return LeafRow(name, lambda lead=(), seed=0: affine(lead=lead, seed=seed, **options), slow=slow)


LEAVES = (
    *(_affine_row(f"affine-{b}bit", bits=b, slow=b in (2, 8)) for b in (2, 3, 4, 8)),
    _affine_row("affine-real-zero", bits=3, zero_kind="real"),
    _affine_row("affine-no-zero", slow=True, bits=4, zero_kind="none", group=24),
    _affine_row("affine-per-channel", slow=True, bits=4, group=-1),
    _affine_row("affine-group-index", bits=3, group=24, g_idx=True),
    LeafRow("codebook-3bit", lambda lead=(), seed=0: codebook(lead=lead, seed=seed), rows=False),
    LeafRow(
        "codebook-ternary",
        lambda lead=(), seed=0: codebook(levels=3, group=32, lead=lead, seed=seed),
        rows=False,
        slow=True,
    ),
    LeafRow("sum", total, rows=False),
    LeafRow("transposed", transposed),
)
LEAF_TYPES: set[type] = {Affine, Codebook, Sum, Transposed}


METHODS = (
    MethodRow(RTN(bits=4, group=64), None, 4.3125),
    MethodRow(RTN(bits=3, group=64, sym=True), None, 3.25, slow=True),
    MethodRow(RTN(bits=3, group=64, grid="mse"), RTN(bits=3, group=64), 3.296875, slow=True),
    MethodRow(GPTQ(bits=3, group=64), RTN(bits=3, group=64, grid="mse"), 3.296875),
    MethodRow(GPTQ(bits=3, group=64, grid="hessian"), GPTQ(bits=3, group=64), 3.296875),
    MethodRow(GPTQ(bits=4, group=128, order="group_aware"), RTN(bits=4, group=64), 4.18, slow=True),
    MethodRow(GPTQ(bits=3, group=-1, levels="kmeans"), GPTQ(bits=3, group=64), 3.23),
    MethodRow(GPTQ(bits=2, group=64, levels="ternary", grid="hessian"), RTN(bits=2, group=64), 2.76, slow=True),
)

# A family's rows stand in a file of their own, rows_<family>.py, with LEAVES, LEAF_TYPES and METHODS.
for _path in sorted(Path(__file__).parent.glob("rows_*.py")):
    _family = importlib.import_module(f"{__package__}.{_path.stem}")
    LEAVES += _family.LEAVES
    LEAF_TYPES |= _family.LEAF_TYPES
    METHODS += _family.METHODS
