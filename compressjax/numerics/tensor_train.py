"""Matrices as tensor trains (matrix product operators): bonds, decomposition by successive SVDs, rounding, gauges.

A matrix ``[in, out]`` with ``in = i_1 ... i_N`` and ``out = o_1 ... o_N`` becomes a chain of cores, core k of axes
``(a_k, i_k, o_k, a_{k+1})`` and ``a_1 = a_{N+1} = 1``::

    W[(i_1 ... i_N), (o_1 ... o_N)] = sum over a of  prod_k core_k[a_k, i_k, o_k, a_{k+1}]

The ranges of ``a_2 .. a_N`` are the bonds. Cores are held as matrices ``[a_k i_k, o_k a_{k+1}]``, all splits being
row-major. Oseledets, 2011 (SIAM J. Sci. Comput. 33); for matrices Novikov et al., 2015, arXiv 1509.06569.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Dims = tuple[int, ...]


class Train(NamedTuple):
    """Cores in left-canonical form, and the spectrum at every bond.

    Attributes:
      cores: N matrices ``[a_k i_k, o_k a_{k+1}]``; all but the last have orthonormal columns over ``(a_k i_k o_k)``.
      values: N - 1 arrays, the singular values that each bond kept, falling.
      lost: N - 1 scalars, the sum of squares of those that it left.
    """

    cores: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lost: tuple[jax.Array, ...]


def capped_bonds(in_dims: Dims, out_dims: Dims, bond: int | Sequence[int]) -> Dims:
    """Bonds of at most ``bond`` (one for all, or one each), none larger than the matrix can use.

    >>> capped_bonds((6, 6, 6), (6, 6, 6), 50)
    (36, 36)
    """
    sizes = [i * o for i, o in zip(in_dims, out_dims, strict=True)]
    wanted = [bond] * (len(sizes) - 1) if isinstance(bond, int) else list(bond)
    caps = [min(math.prod(sizes[: k + 1]), math.prod(sizes[k + 1 :])) for k in range(len(sizes) - 1)]
    bonds = [min(b, cap) for b, cap in zip(wanted, caps, strict=True)]
    # A bond is also at most what its neighbour's core has on the other three sides.
    for k in range(1, len(bonds)):
        bonds[k] = min(bonds[k], bonds[k - 1] * sizes[k])
    for k in range(len(bonds) - 2, -1, -1):
        bonds[k] = min(bonds[k], bonds[k + 1] * sizes[k + 1])
    return tuple(bonds)


def count_numbers(in_dims: Dims, out_dims: Dims, bonds: Dims) -> int:
    """Numbers that the cores hold: ``sum_k a_k i_k o_k a_{k+1}``.

    >>> count_numbers((6, 6, 6), (6, 6, 6), (10, 10)) == 2 * 36 * 10 + 36 * 10**2
    True
    """
    ends = (1, *bonds, 1)
    return sum(a * i * o * b for a, i, o, b in zip(ends, in_dims, out_dims, ends[1:], strict=False))


def largest_bond(in_dims: Dims, out_dims: Dims, budget: float) -> int:
    """The largest bond for all links whose cores hold at most ``budget`` numbers; 0 when not even 1 fits."""
    low, high = 0, max(capped_bonds(in_dims, out_dims, math.prod(in_dims) * math.prod(out_dims)), default=1)
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_numbers(in_dims, out_dims, capped_bonds(in_dims, out_dims, middle)) <= budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def interleave(w: jax.Array, in_dims: Dims, out_dims: Dims) -> jax.Array:
    """``[in, out] -> [i_1 o_1, ..., i_N o_N]``."""
    sites = len(in_dims)
    split = w.reshape(*in_dims, *out_dims)
    pairs = split.transpose([axis for k in range(sites) for axis in (k, sites + k)])
    return pairs.reshape([i * o for i, o in zip(in_dims, out_dims, strict=True)])


def decompose(w: jax.Array, in_dims: Dims, out_dims: Dims, bonds: Dims) -> Train:
    """Successive truncated SVDs from the left.

    ``|W - Ŵ|²`` is at most the sum of what the bonds lost, and equal to it at one bond.

    Args:
      w: ``[in, out]``, float32.
      in_dims, out_dims: N factors each of the two sides.
      bonds: N - 1 of them, as :func:`capped_bonds` gives them.
    """
    return _sweep(interleave(w, in_dims, out_dims).reshape(1, -1), in_dims, out_dims, bonds, None)


def round_train(cores: Sequence[jax.Array], in_dims: Dims, out_dims: Dims, bonds: Dims) -> Train:
    """A train with smaller bonds, without forming the matrix: orthogonalised from the right, truncated from the left.

    Args:
      cores: matrices, float32.
      in_dims, out_dims: as the cores have them.
      bonds: as :func:`capped_bonds` gives them, none above what the cores have.
    """
    ends = [core.shape[0] // i for core, i in zip(cores, in_dims, strict=True)]
    rows = [core.reshape(end, -1) for core, end in zip(cores, ends, strict=True)]
    for k in range(len(rows) - 1, 0, -1):
        q, r = jnp.linalg.qr(rows[k].T)
        rows[k] = q.T
        left = rows[k - 1].reshape(-1, r.shape[1])
        rows[k - 1] = jnp.matmul(left, r.T, precision="highest").reshape(rows[k - 1].shape[0], -1)
    return _sweep(rows[0], in_dims, out_dims, bonds, rows[1:])


def _sweep(carry, in_dims, out_dims, bonds, rest):
    """Truncates bond after bond; ``rest`` are the right-orthonormal rows of later cores, None while they are in carry.

    The carry is ``[a_k, i_k o_k ...]``.
    """
    cores, values, lost = [], [], []
    for k, bond in enumerate(bonds):
        a, i, o = carry.shape[0], in_dims[k], out_dims[k]
        left, s, right = jnp.linalg.svd(carry.reshape(a * i * o, -1), full_matrices=False)
        cores.append(left[:, :bond].reshape(a * i, o * bond))
        values.append(s[:bond])
        lost.append(jnp.sum(s[bond:] ** 2))
        carry = s[:bond, None] * right[:bond]
        if rest is not None:
            carry = jnp.matmul(carry, rest[k], precision="highest")
    cores.append(carry.reshape(-1, out_dims[-1]))
    return Train(tuple(cores), tuple(values), tuple(lost))


def balance(train: Train, in_dims: Dims, out_dims: Dims) -> tuple[jax.Array, ...]:
    """The same matrix with every bond's singular values split evenly between its two cores.

    In left-canonical form all of the matrix's size is in the last core: sixteen bits, a shared grid and one learning
    rate for all cores serve it badly.
    """
    cores = list(train.cores)
    for k, s in enumerate(train.values):
        root = jnp.sqrt(s)
        inverse = jnp.where(s > 0, 1 / jnp.where(s > 0, root, 1), 0)
        left = cores[k].reshape(-1, s.shape[0]) * root[None]
        right = inverse[:, None] * cores[k + 1].reshape(s.shape[0], -1)
        cores[k] = left.reshape(cores[k].shape)
        cores[k + 1] = right.reshape(cores[k + 1].shape)
    return tuple(cores)
