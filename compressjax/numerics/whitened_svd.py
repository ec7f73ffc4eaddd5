"""Best low-rank fits of a weight as its inputs see it.

With ``S Sᵀ = C`` the second moment of the inputs, ``E|x(Δ - P)|² = |Sᵀ(Δ - P)|²``, so the best ``P`` of rank r is read
off the singular value decomposition of ``Sᵀ Δ`` (Eckart and Young, 1936). With ``Δ`` a weight this is the uncentred
atomic feature mimicking that LoRD uses, with ``Δ`` what a compressed weight lost it is EoRA, with ``S = I`` plain SVD.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.numerics.large_svd import is_large, truncated_svd


class Whitening(NamedTuple):
    """Square root of a second moment and its inverse on the directions that the inputs reach.

    Attributes:
      basis: eigenvectors ``[in, in]``, columns.
      root: ``sqrt(λ)`` of kept directions, 0 elsewhere, ``[in]``.
      inverse: ``1 / sqrt(λ)`` of kept directions, 0 elsewhere, ``[in]``.
      rank: int32, directions kept.
    """

    basis: jax.Array
    root: jax.Array
    inverse: jax.Array
    rank: jax.Array


class LowRankFit(NamedTuple):
    """A fit ``left @ right`` and what it leaves.

    Attributes:
      left: ``[in, r]``.
      right: ``[r, out]``.
      values: all singular values of the whitened weight, falling, ``[min(in, out)]``; the squares of those past r sum
        up to the squared output error. Only the first r where the weight is large (``numerics.large_svd``).
    """

    left: jax.Array
    right: jax.Array
    values: jax.Array


def whiten(c: jax.Array, damp: float = 0.0, rtol: float | None = None) -> Whitening:
    """Eigenvectors of a second moment, without those whose eigenvalue is nothing but rounding.

    Args:
      c: symmetric, not negative ``[in, in]``, float32; its scale does not matter to a fit.
      damp: added to the diagonal, relative to its mean.
      rtol: eigenvalues up to this share of the largest are dropped; None for ``in * eps``. A tiny eigenvalue that is
        kept makes huge factors that overflow in 16 bits.
    """
    width = c.shape[0]
    mean = jnp.mean(jnp.diagonal(c))
    unit = jnp.where(mean > 0, mean, 1)
    values, basis = jnp.linalg.eigh(c / unit + damp * jnp.eye(width, dtype=c.dtype))
    limit = jnp.max(values) * (width * jnp.finfo(c.dtype).eps if rtol is None else rtol)
    kept = (values > limit) & (values > 0)
    root = jnp.sqrt(jnp.where(kept, values, 1) * unit)
    return Whitening(basis, jnp.where(kept, root, 0), jnp.where(kept, 1 / root, 0), jnp.sum(kept, dtype=jnp.int32))


def whitened_fit(delta: jax.Array, white: Whitening, rank: int) -> LowRankFit:
    """Rank-r fit of ``delta [in, out]`` with the least output error; both factors get the root of the values."""
    left, right, values = _svd(white.root[:, None] * jnp.matmul(white.basis.T, delta, precision="highest"), rank)
    return LowRankFit(jnp.matmul(white.basis, white.inverse[:, None] * left, precision="highest"), right, values)


def scaled_fit(delta: jax.Array, scale: jax.Array | None, rank: int) -> LowRankFit:
    """The same with every input weighed by itself: ``scale [in]``, 0 where it does not count; None for all alike."""
    if scale is None:
        return LowRankFit(*_svd(delta, rank))
    left, right, values = _svd(scale[:, None] * delta, rank)
    return LowRankFit(jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)[:, None] * left, right, values)


def output_basis(w: jax.Array, white: Whitening, rank: int) -> tuple[jax.Array, jax.Array]:
    """Leading directions of the outputs ``x w``: orthonormal ``[out, r]``, and the singular values behind them.

    They are the eigenvectors of the outputs' second moment ``wᵀ C w``, found without forming it: its condition is the
    square of this problem's, and outputs may be many times more than inputs.
    """
    seen = white.root[:, None] * jnp.matmul(white.basis.T, w, precision="highest")
    _, values, right = jnp.linalg.svd(seen, full_matrices=False)
    return right[:rank].T, values


def _svd(matrix, rank):
    if is_large(matrix.shape, rank):
        left, values, right = truncated_svd(matrix, rank)
    else:
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    share = jnp.sqrt(values[:rank])
    return left[:, :rank] * share[None], share[:, None] * right[:rank], values
