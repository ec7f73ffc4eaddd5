"""Leading singular vectors of matrices too large for LAPACK's decomposition, which wants several copies of them.

Subspace iteration from random directions (Halko, Martinsson and Tropp, 2011, arXiv 0909.4061), the matrix read in
blocks and never copied: what is held besides it is a block, the directions and the thin factor. Rows may be weighed and
a common row taken off on the way, so that weighted principal components need no copy either.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LARGE = 2**24
"""Entries from which a matrix counts as large: 64 MB of float32."""

_OVERSAMPLING = 16
_ROUNDS = 6
_BLOCK = 2**22  # entries that are held at a time, 16 MB of float32


class Leading(NamedTuple):
    """Leading singular vectors of one side, and values.

    Attributes:
      basis: orthonormal columns ``[side, r]``.
      values: falling ``[r]``.
    """

    basis: jax.Array
    values: jax.Array


def is_large(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a matrix is large and the rank thin enough for subspace iteration to be the cheaper way.

    >>> is_large((32768, 4096), 64), is_large((32768, 4096), 2048), is_large((576, 1536), 64)
    (True, False, False)
    """
    return shape[0] * shape[1] >= LARGE and 4 * (rank + _OVERSAMPLING) <= min(shape)


def leading_right(
    matrix: jax.Array,
    rank: int,
    *,
    weight: jax.Array | None = None,
    shift: jax.Array | None = None,
    rounds: int = _ROUNDS,
) -> Leading:
    """Leading right singular vectors of ``diag(√weight) (matrix - 1 shiftᵀ)``; the same on every call.

    Args:
      matrix: ``[rows, cols]``, float32, read in blocks of rows.
      rank: r, at least 1 and at most the smaller side.
      weight: ``[rows]``, >= 0, or None for ones.
      shift: ``[cols]``, or None for zeros.
      rounds: of multiplying by the matrix and its transpose and orthonormalising; each reads the matrix once.

    Raises:
      ValueError: a rank that does not fit, or no round.
    """
    return _leading(functools.partial(_normal, matrix, weight, shift), matrix.shape, matrix.shape[1], rank, rounds)


def truncated_svd(matrix: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``left [rows, r]``, ``values [r]`` and ``right [r, cols]`` of the best product of rank r, nearly.

    Vectors of the shorter side are iterated and those of the longer one follow; no matrix is transposed as a whole.

    Raises:
      ValueError: a rank that does not fit.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    if wide:
        step = functools.partial(_normal_of_wide, matrix)
        basis, values = _leading(step, matrix.shape, matrix.shape[0], rank, _ROUNDS)
        thin = jnp.matmul(basis.T, matrix, precision="highest").T
    else:
        basis, values = leading_right(matrix, rank)
        thin = jnp.matmul(matrix, basis, precision="highest")
    thin = thin * jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)[None]
    return (basis, values, thin.T) if wide else (thin, values, basis.T)


def normal_matrix(matrix: jax.Array, weight: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
    """``Mᵀ M [cols, cols]`` for ``M = diag(√weight) (matrix - 1 shiftᵀ)``, arguments as for :func:`leading_right`."""
    return _normal(matrix, weight, shift, jnp.eye(matrix.shape[1], dtype=matrix.dtype))


def product_error(
    matrix: jax.Array,
    left: jax.Array,
    right: jax.Array,
    *,
    weight: jax.Array | None = None,
    shift: jax.Array | None = None,
) -> jax.Array:
    """``Σ_i weight_i |matrix_i - shift - (left right)_i|²``, the product made a block of rows at a time."""

    def add(start, part, fresh, total):
        made = jnp.matmul(jax.lax.dynamic_slice_in_dim(left, start, len(part)), right, precision="highest")
        miss = part - made if shift is None else part - made - shift[None]
        return total + jnp.sum(_weighed(fresh, start, weight)[:, None] * miss**2)

    return _over_blocks(matrix, add, jnp.zeros((), matrix.dtype))


def _leading(step: Callable[[jax.Array], jax.Array], shape, side, rank, rounds) -> Leading:
    """Leading eigenvectors of the symmetric operator ``step`` on ``[side]``, and the roots of their values."""
    if not 1 <= rank <= min(shape) or rounds < 1:
        raise ValueError(f"rank must be in 1..{min(shape)} and rounds >= 1, got {rank} and {rounds}")
    first = jax.random.normal(jax.random.key(0), (side, min(rank + _OVERSAMPLING, *shape)), jnp.float32)
    basis = jax.lax.fori_loop(0, rounds, lambda _, q: jnp.linalg.qr(step(q))[0], jnp.linalg.qr(first)[0])
    inner = jnp.matmul(basis.T, step(basis), precision="highest")
    values, turn = jnp.linalg.eigh((inner + inner.T) / 2)
    chosen = jnp.matmul(basis, turn[:, ::-1][:, :rank], precision="highest")
    return Leading(chosen, jnp.sqrt(jnp.maximum(values[::-1][:rank], 0)))


def _over_blocks(matrix, add, start):
    """Folds ``add(first row, block, which of its rows are new, total)`` over blocks of rows."""
    rows = matrix.shape[0]
    block = max(1, min(rows, _BLOCK // matrix.shape[1]))

    def step(i, total):
        # The last block reaches back over rows that have been seen, so that all have one shape.
        first = jnp.minimum(i * block, rows - block)
        part = jax.lax.dynamic_slice_in_dim(matrix, first, block)
        return add(first, part, first + jnp.arange(block) >= i * block, total)

    return jax.lax.fori_loop(0, -(-rows // block), step, start)


def _weighed(fresh, start, weight):
    each = fresh.astype(jnp.float32)
    return each if weight is None else each * jax.lax.dynamic_slice_in_dim(weight, start, len(fresh))


def _normal(matrix, weight, shift, q):
    """``Mᵀ M q`` for ``M = diag(√weight) (matrix - 1 shiftᵀ)``."""
    off = None if shift is None else jnp.matmul(shift[None], q, precision="highest")

    def add(start, part, fresh, total):
        seen = jnp.matmul(part, q, precision="highest")
        seen = _weighed(fresh, start, weight)[:, None] * (seen if off is None else seen - off)
        back = jnp.matmul(part.T, seen, precision="highest")
        return total + back if shift is None else total + back - shift[:, None] * jnp.sum(seen, axis=0)[None]

    return _over_blocks(matrix, add, jnp.zeros_like(q))


def _normal_of_wide(matrix, q):
    """``A Aᵀ q`` for ``A [rows, cols]`` with few rows, in blocks of columns."""
    rows, cols = matrix.shape
    block = max(1, min(cols, _BLOCK // rows))

    def step(i, total):
        first = jnp.minimum(i * block, cols - block)
        part = jax.lax.dynamic_slice_in_dim(matrix, first, block, axis=1)
        seen = jnp.matmul(part.T, q, precision="highest")
        fresh = (first + jnp.arange(block) >= i * block).astype(q.dtype)
        return total + jnp.matmul(part, fresh[:, None] * seen, precision="highest")

    return jax.lax.fori_loop(0, -(-cols // block), step, jnp.zeros_like(q))
