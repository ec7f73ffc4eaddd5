"""What is fixed about a matrix of stored groups, and the check that arrays fit it.

A stored group holds ``group`` consecutive inputs of one output, ``w = scale * (code - zero)``; groups that are not
stored are 0. Its codes take ``group * bits / 32`` words; field ``j`` of word ``k`` holds input ``k + j * words``.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.quantize_pack.layout import FLOATS

MOST_ROWS = 8
GROUPS = (8, 16, 32, 64, 128)
_OP = "group_sparse_matmul"


class StoredGroups(NamedTuple):
    """Stored groups; ``n`` is ``(kept, cols)`` in layout "ell" and ``(total,)`` in layout "bsr".

    Attributes:
      codes: uint32 ``[words, *n]``.
      scale: float ``[*n]``.
      zero: "int": uint32, codes packed along the last axis of ``n`` in tiles of 32; "real": float ``[*n]``.
      index: uint8 or uint16 ``[*n]``, which group of inputs it is.
      row_ptr: int32 ``[cols + 1]``, where the groups of each output stand, in layout "bsr"; None in "ell".
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array
    index: jax.Array
    row_ptr: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSparseLayout:
    """A matrix ``[rows, cols]``.

    Attributes:
      bits: 2, 4 or 8.
      group: inputs of a group, a power of two from 8 to 128 that fills whole words.
      rows, cols: inputs and outputs.
      kept: groups stored of each output ("ell"), or of all ("bsr").
      equal: whether every output stores equally many: layout "ell", otherwise "bsr".
      zero_kind: "int" or "real".
    """

    bits: int
    group: int
    rows: int
    cols: int
    kept: int
    equal: bool
    zero_kind: Literal["int", "real"]

    def __post_init__(self):
        if self.bits not in (2, 4, 8):
            raise ValueError(f"{_OP}: bits must be 2, 4 or 8, got {self.bits}")
        if self.group not in GROUPS or self.group * self.bits % 32:
            raise ValueError(f"{_OP}: group must be one of {GROUPS} and fill words of 32 bits, got {self.group}")
        if self.zero_kind not in ("int", "real"):
            raise ValueError(f"{_OP}: zero_kind must be 'int' or 'real', got {self.zero_kind!r}")
        for name in ("rows", "cols", "kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_OP}: {name} must be at least 1, got {getattr(self, name)}")
        if self.rows % self.group:
            raise ValueError(f"{_OP}: group={self.group} must divide the {self.rows} rows")

    @property
    def words(self) -> int:
        """Words of a group."""
        return self.group * self.bits // 32

    @property
    def fields(self) -> int:
        """Fields of a word."""
        return 32 // self.bits

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of ``scale`` and ``index``."""
        return (self.kept, self.cols) if self.equal else (self.kept,)

    @property
    def zero_words(self) -> int:
        """Words of the packed zeros along the last axis."""
        return -(-self.stored[-1] // 32) * self.bits


def check_arrays(x: jax.Array, stored: StoredGroups, layout: GroupSparseLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"{_OP}: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    zero = layout.stored if layout.zero_kind == "real" else (*layout.stored[:-1], layout.zero_words)
    wanted = {"codes": (layout.words, *layout.stored), "scale": layout.stored, "zero": zero, "index": layout.stored}
    for name, shape in wanted.items():
        if getattr(stored, name).shape != shape:
            raise ValueError(f"{_OP}: {name} must have shape {shape}, got {getattr(stored, name).shape}")
    real = layout.zero_kind == "real"
    for name, fits, what in (
        ("codes", stored.codes.dtype == jnp.uint32, "uint32"),
        ("scale", jnp.issubdtype(stored.scale.dtype, jnp.floating), "floating point"),
        (
            "zero",
            jnp.issubdtype(stored.zero.dtype, jnp.floating) == real,
            "floating point or uint32, as zero_kind says",
        ),
        ("index", stored.index.dtype in (jnp.uint8, jnp.uint16), "uint8 or uint16"),
    ):
        if not fits:
            raise TypeError(f"{_OP}: {name} must be {what}, got {getattr(stored, name).dtype}")
    if (stored.row_ptr is None) != layout.equal:
        raise ValueError(f"{_OP}: row_ptr goes with layout 'bsr' and no other")
    if stored.row_ptr is not None and (stored.row_ptr.shape != (layout.cols + 1,) or stored.row_ptr.dtype != jnp.int32):
        raise ValueError(
            f"{_OP}: row_ptr must be int32 of shape ({layout.cols + 1},), got {stored.row_ptr.dtype} of shape "
            f"{stored.row_ptr.shape}"
        )
