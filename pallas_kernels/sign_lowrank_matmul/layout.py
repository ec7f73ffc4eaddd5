"""What is fixed about a stack of sign and low-rank blocks, and the check that arrays fit it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing

ACTIVATIONS = (jnp.bfloat16, jnp.float16, jnp.float32)
_MOST_RANK = 128


class SignBlocks(NamedTuple):
    """Blocks in ``P`` places and the order in which they count.

    Attributes:
      signs: uint32 ``[P, words, cols]``, bit 1 for plus, see :mod:`pallas_kernels.packing`.
      u: float ``[P, rows, rank]``.
      v: float ``[P, rank, cols]`` in the dtype of ``u``.
      slots: int32 ``[n]``, the place of the ``j``-th block.
      loaded: int32 scalar, blocks that count, at most ``n``; later ones are never read.
    """

    signs: jax.Array
    u: jax.Array
    v: jax.Array
    slots: jax.Array
    loaded: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignLayout:
    """A matrix ``[rows, cols]`` that is ``sum over j < loaded of S_j * (u_j v_j)`` with ``S`` in {-1, +1}.

    Attributes:
      rank: columns of ``u``, 1 to 128.
      tile: rows packed together: 32, 64, 128 or 256.
      rows, cols: inputs and outputs.
    """

    rank: int
    tile: int
    rows: int
    cols: int

    def __post_init__(self):
        self.packing.check("sign_lowrank_matmul")
        if not 1 <= self.rank <= _MOST_RANK:
            raise ValueError(f"sign_lowrank_matmul: rank must be in 1..{_MOST_RANK}, got {self.rank}")
        for name in ("rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"sign_lowrank_matmul: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def packing(self) -> Packing:
        """How the signs are packed along the inputs."""
        return Packing(1, self.tile, self.rows)


def check_arrays(x: jax.Array, blocks: SignBlocks, layout: SignLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    op = "sign_lowrank_matmul"
    if x.dtype not in ACTIVATIONS:
        raise TypeError(f"{op}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"{op}: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    places = blocks.signs.shape[0] if blocks.signs.ndim else 0
    words = (places, layout.packing.tiles * layout.packing.words, layout.cols)
    if blocks.signs.dtype != jnp.uint32 or blocks.signs.shape != words or places < 1:
        raise ValueError(
            f"{op}: signs must be uint32 of shape [places >= 1, {words[1]}, {words[2]}], got {blocks.signs.dtype} of "
            f"shape {blocks.signs.shape}"
        )
    if not jnp.issubdtype(blocks.u.dtype, jnp.floating) or blocks.u.dtype != blocks.v.dtype:
        raise TypeError(f"{op}: u and v must be floating point of one dtype, got {blocks.u.dtype} and {blocks.v.dtype}")
    wanted = (places, layout.rows, layout.rank), (places, layout.rank, layout.cols)
    if (blocks.u.shape, blocks.v.shape) != wanted:
        raise ValueError(
            f"{op}: u and v must have shapes {wanted[0]} and {wanted[1]}, got {blocks.u.shape} and {blocks.v.shape}"
        )
    if blocks.slots.dtype != jnp.int32 or blocks.slots.ndim != 1 or blocks.slots.shape[0] < 1:
        raise ValueError(
            f"{op}: slots must be int32 of shape [n >= 1], got {blocks.slots.dtype} of shape {blocks.slots.shape}"
        )
    if blocks.loaded.dtype != jnp.int32 or blocks.loaded.ndim != 0:
        raise ValueError(
            f"{op}: loaded must be an int32 scalar, got {blocks.loaded.dtype} of shape {blocks.loaded.shape}"
        )
