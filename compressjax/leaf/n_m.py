"""N of every M inputs kept, as the sparse tensor cores of GPUs read them: a shorter weight and the kept positions."""

from typing import Any

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t


@leaf(static=("n", "m", "shape", "tile"))
class NMSparse:
    """Weight of logical shape ``[in, out]`` with ``n`` weights stored of every ``m`` inputs; stacked layers lead.

    ``w[m*j + position[n*j + i, o], o] = values[n*j + i, o]`` for ``i < n``, 0 elsewhere.

    Attributes:
      values: a weight, dense or a leaf, of logical shape ``[*lead, in*n/m, out]``.
      positions: uint32 ``[*lead, packed, out]``, positions inside the ``m`` inputs in ``log2(m)`` bits each, see
        ``numerics.bitpack``; ascending inside each ``m``.
      n, m: stored per ``m`` inputs.
      shape: ``(in, out)``.
      tile: positions packed together.
    """

    values: Any
    positions: jax.Array
    n: int
    m: int
    shape: tuple[int, int]
    tile: int


def check_n_m(rows: int, n: int, m: int) -> None:
    """Refuses patterns that do not fit.

    Raises:
      ValueError: for ``m`` not 2, 4, 8 or 16, ``n`` not in ``1..m-1``, or ``rows`` not a multiple of ``m``.
    """
    if m not in (2, 4, 8, 16):
        raise ValueError(f"m must be 2, 4, 8 or 16, got {m}")
    if not 1 <= n < m:
        raise ValueError(f"n must be in 1..{m - 1} for m={m}, got {n}")
    if rows % m:
        raise ValueError(f"m={m} must divide the {rows} inputs")


def pack_n_m(values: Any, positions: jax.Array, *, n: int, m: int) -> NMSparse:
    """Builds an :class:`NMSparse` leaf.

    Args:
      values: a weight ``[*lead, in*n/m, out]``.
      positions: integers ``[*lead, in*n/m, out]`` in ``0..m-1``, different inside each run of ``n``.
      n, m: stored per ``m`` inputs.

    Raises:
      ValueError: for a pattern :func:`check_n_m` refuses, or positions of another shape than the values.
    """
    short, cols = logical_shape(values)[-2:]
    if tuple(positions.shape) != logical_shape(values):
        raise ValueError(f"positions must have the values' shape {logical_shape(values)}, got {positions.shape}")
    if n < 1 or short % n:
        raise ValueError(f"values must have a multiple of n={n} rows, got {short}")
    rows = short // n * m
    check_n_m(rows, n, m)
    tile = bitpack.pack_tile(short)
    packed = bitpack.pack(positions, (m - 1).bit_length(), tile)
    return NMSparse(values=values, positions=packed, n=n, m=m, shape=(rows, cols), tile=tile)


def unpack_positions(w: NMSparse) -> jax.Array:
    """Positions of an N:M leaf, uint8 ``[*lead, in/m, n, out]``."""
    rows, cols = w.shape
    flat = bitpack.unpack(w.positions, (w.m - 1).bit_length(), w.tile, rows // w.m * w.n)
    return flat.reshape(*flat.shape[:-2], rows // w.m, w.n, cols)


def spread(values: jax.Array, w: NMSparse) -> jax.Array:
    """Puts ``values [*lead, in*n/m, out]`` where the leaf's positions say, zeros elsewhere: ``[*lead, in, out]``."""
    rows, cols = w.shape
    lead = values.shape[:-2]
    blocks = values.reshape(*lead, rows // w.m, w.n, 1, cols)
    here = unpack_positions(w)[..., None, :] == jnp.arange(w.m, dtype=jnp.uint8).reshape(*[1] * (len(lead) + 2), w.m, 1)
    return jnp.sum(jnp.where(here, blocks, jnp.zeros((), values.dtype)), axis=-3).reshape(*lead, rows, cols)


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(NMSparse)
@jax.jit
def _dense(w: NMSparse):
    return spread(dense(w.values).astype(jnp.float32), w)


@logical_shape.register(NMSparse)
def _shape(w: NMSparse):
    return (*logical_shape(w.values)[:-2], *w.shape)


@matmul.register(NMSparse)
def _matmul(x, w: NMSparse):
    return x @ dense(w).astype(x.dtype)


@matmul_t.register(NMSparse)
def _matmul_t(x, w: NMSparse):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))
