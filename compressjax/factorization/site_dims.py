"""How the two sides of a matrix are cut into factors, one per core of a tensor train."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.numerics.tensor_train import Dims, capped_bonds, count_numbers, interleave, largest_bond


@functools.cache
def balanced_factors(size: int, sites: int) -> Dims:
    """``size`` as a rising product of ``sites`` factors with the least sum, that is, as equal as can be.

    >>> balanced_factors(576, 2), balanced_factors(1536, 3), balanced_factors(7, 2)
    ((24, 24), (8, 12, 16), (1, 7))
    """
    return min(_products(size, sites, 1), key=sum)


def _products(size: int, sites: int, least: int) -> Iterator[Dims]:
    """Rising factorisations of ``size``, factors from ``least`` on; the trivial one is always among them."""
    if sites == 1:
        yield (size,)
        return
    for first in range(least, int(size ** (1 / sites) + 1e-9) + 1):
        if size % first == 0:
            yield from ((first, *rest) for rest in _products(size // first, sites - 1, first))


def padded_size(size: int, sites: int) -> int:
    """The smallest size from ``size`` on whose most equal factors are within twice of each other.

    >>> padded_size(97, 2), padded_size(576, 2)
    (98, 576)
    """
    while True:
        factors = balanced_factors(size, sites)
        if factors[-1] <= 2 * factors[0]:
            return size
        size += 1


class DimsFit(NamedTuple):
    """What a pair of cuts leaves of a matrix.

    Attributes:
      in_dims, out_dims: factors of the two sides.
      bond: the largest that the budget allows.
      error: share of the squared weight that is lost; over all layers of a stack.
    """

    in_dims: Dims
    out_dims: Dims
    bond: int
    error: float


def search_dims(
    w: jax.Array, param_ratio: float, candidates: Sequence[tuple[Dims, Dims]] | None = None
) -> list[DimsFit]:
    """Compares ways to cut a matrix in two sites at one number of parameters, best first.

    What two cores lose is exactly what their one bond leaves, so that the spectra alone decide; nothing is stored. The
    cut ``(in, 1)`` by ``(1, out)`` is the plain truncated SVD, so the best of a list that holds it is never worse.

    Args:
      w: ``[in, out]`` or stacked.
      param_ratio: numbers in the cores over numbers in the matrix.
      candidates: pairs ``(i_1, i_2), (o_1, o_2)``; None for the most equal cut, that with its factors the other way
        round, and the plain SVD.

    Raises:
      ValueError: a cut that does not multiply to the shape, or a budget under bond 1 for all of them.
    """
    rows, cols = w.shape[-2:]
    if candidates is None:
        even_in, even_out = balanced_factors(rows, 2), balanced_factors(cols, 2)
        candidates = [(even_in, even_out), (even_in[::-1], even_out), ((rows, 1), (1, cols))]
    found = []
    for in_dims, out_dims in dict.fromkeys(candidates):
        check_dims(rows, cols, in_dims, out_dims, "candidates")
        bond = largest_bond(in_dims, out_dims, param_ratio * rows * cols)
        if bond:
            found.append(DimsFit(in_dims, out_dims, bond, float(_lost(w, in_dims, out_dims, bond))))
    if not found:
        raise ValueError(f"param_ratio {param_ratio} leaves no cut of {(rows, cols)} a bond of 1")
    return sorted(found, key=lambda fit: fit.error)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _lost(w, in_dims, out_dims, bond):
    def one(matrix):
        s = jnp.linalg.svd(interleave(matrix.astype(jnp.float32), in_dims, out_dims), compute_uv=False)
        return jnp.sum(s[bond:] ** 2), jnp.sum(s**2)

    lost, total = jax.lax.map(one, w.reshape(-1, *w.shape[-2:]))
    return jnp.sum(lost) / jnp.sum(total)


def check_dims(rows: int, cols: int, in_dims: Dims, out_dims: Dims, what: str, pad: bool = False) -> None:
    """Raises ValueError unless the factors multiply to the shape, or to more with ``pad``."""
    full = math.prod(in_dims), math.prod(out_dims)
    fits = full[0] >= rows and full[1] >= cols if pad else full == (rows, cols)
    if len(in_dims) != len(out_dims) or not fits:
        raise ValueError(
            f"{what} must be as many factors of {rows} inputs and of {cols} outputs, got {in_dims} and {out_dims}"
            + ("" if pad else "; pad=True allows larger products")
        )


def dims_for(cfg: Any, rows: int, cols: int) -> tuple[Dims, Dims]:
    """Factors of the sides of a weight ``[rows, cols]``: given, or as equal as can be.

    Args:
      cfg: with ``sites``, ``in_dims``, ``out_dims`` and ``pad``.

    Raises:
      ValueError: given factors that do not fit, or a side without as many factors above 1 where ``pad`` is False.
    """
    name = type(cfg).__name__
    if cfg.in_dims is not None:
        check_dims(rows, cols, cfg.in_dims, cfg.out_dims, f"{name}.in_dims and out_dims", cfg.pad)
        return cfg.in_dims, cfg.out_dims
    dims = []
    for size in (rows, cols):
        factors = balanced_factors(padded_size(size, cfg.sites) if cfg.pad else size, cfg.sites)
        if factors[0] == 1 and cfg.sites > 1 and size > 1:
            raise ValueError(
                f"{name}.sites={cfg.sites} needs as many factors of {size} above 1: give in_dims and out_dims, "
                "or pad=True"
            )
        dims.append(factors)
    return dims[0], dims[1]


def bonds_for(cfg: Any, rows: int, cols: int) -> Dims:
    """Bonds for a weight ``[rows, cols]``: ``max_bond`` capped, or the largest that ``param_ratio`` allows.

    Raises:
      ValueError: as :func:`dims_for`; another number of bonds; a ratio under bond 1.
    """
    in_dims, out_dims = dims_for(cfg, rows, cols)
    if cfg.max_bond is not None:
        if not isinstance(cfg.max_bond, int) and len(cfg.max_bond) != len(in_dims) - 1:
            raise ValueError(
                f"{type(cfg).__name__}.max_bond must be one bond or {len(in_dims) - 1} for {len(in_dims)} sites, "
                f"got {cfg.max_bond}"
            )
        return capped_bonds(in_dims, out_dims, cfg.max_bond)
    bond = largest_bond(in_dims, out_dims, cfg.param_ratio * rows * cols)
    if bond < 1:
        least = count_numbers(in_dims, out_dims, capped_bonds(in_dims, out_dims, 1)) / (rows * cols)
        raise ValueError(
            f"{type(cfg).__name__}.param_ratio must be at least {least:.4g} for a weight {(rows, cols)} in sites "
            f"{in_dims} by {out_dims}, got {cfg.param_ratio}"
        )
    return capped_bonds(in_dims, out_dims, bond)
