"""Any weights of a matrix left out: a bit per weight says which are there, and those stand one after another."""

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t


@leaf(static=("shape", "tile"))
class Masked:
    """Weight of logical shape ``[in, out]`` of which only some are stored; stacked layers lead.

    The ``k``-th weight of the mask, row by row, is ``values[k]``; all others are 0. At half of the weights dropped and
    16-bit values that is 9 bits per weight, where indices of 16 bits would take 16.

    Attributes:
      values: float ``[*lead, nnz]``.
      mask: uint32 ``[*lead, packed, out]``, one bit per weight, see ``numerics.bitpack``; ``nnz`` bits are set.
      shape: ``(in, out)``.
      tile: rows of the mask packed together.
    """

    values: jax.Array
    mask: jax.Array
    shape: tuple[int, int]
    tile: int


def pack_masked(w: jax.Array, keep: jax.Array, nnz: int, dtype: str = "float16") -> Masked:
    """Builds a :class:`Masked` leaf.

    Args:
      w: ``[in, out]``.
      keep: bool ``[in, out]``, True at ``nnz`` weights; with fewer, zeros fill up, and later ones of more are lost.
      nnz: weights that are stored, which must be known before any value is.
      dtype: of the stored values.

    Raises:
      ValueError: shapes that differ, or ``nnz`` outside ``0..in*out``.
    """
    if w.ndim != 2 or w.shape != keep.shape:
        raise ValueError(f"w and keep must be one matrix [in, out] each, got {w.shape} and {keep.shape}")
    if not 0 <= nnz <= w.size:
        raise ValueError(f"nnz must be in 0..{w.size}, got {nnz}")
    (at,) = jnp.nonzero(keep.reshape(-1), size=nnz, fill_value=w.size)
    values = jnp.take(w.reshape(-1), at, fill_value=0).astype(dtype)
    tile = bitpack.pack_tile(w.shape[0])
    return Masked(values=values, mask=bitpack.pack(keep, 1, tile), shape=(w.shape[0], w.shape[1]), tile=tile)


def kept(w: Masked) -> jax.Array:
    """Which weights are stored, bool ``[*lead, in, out]``."""
    return bitpack.unpack(w.mask, 1, w.tile, w.shape[0]) == 1


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(Masked)
@jax.jit
def _dense(w: Masked):
    keep = kept(w)
    if not w.values.shape[-1]:
        return jnp.zeros(keep.shape, jnp.float32)
    flat = keep.reshape(*keep.shape[:-2], -1)
    place = jnp.cumsum(flat.astype(jnp.int32), axis=-1) - 1
    spread = jnp.take_along_axis(w.values, jnp.maximum(place, 0), axis=-1).astype(jnp.float32)
    return jnp.where(flat, spread, 0.0).reshape(keep.shape)


@logical_shape.register(Masked)
def _shape(w: Masked):
    return (*w.values.shape[:-1], *w.shape)


@matmul.register(Masked)
def _matmul(x, w: Masked):
    return x @ dense(w).astype(x.dtype)


@matmul_t.register(Masked)
def _matmul_t(x, w: Masked):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))
