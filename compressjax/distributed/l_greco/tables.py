"""How far every unit's gradient would move at every level, measured on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.distributed.l_greco.config import LGreco
from compressjax.distributed.l_greco.orthonormal import orthonormal
from compressjax.distributed.l_greco.units import Unit, count_kept, feasible
from compressjax.distributed.rounded import MinMax


class Table(NamedTuple):
    """What is known of the units.

    Attributes:
      errors: float32 ``[units, levels]``, ``|G - C(G)|_2`` or its square; inf where a unit lacks a level.
      norms: float32 ``[units]``, ``|G|_2``.
    """

    errors: jax.Array
    norms: jax.Array


def error_table(matrices: list[jax.Array], units: tuple[Unit, ...], cfg: LGreco) -> Table:
    """Errors of compressing each matrix, always absolute: a small gradient's loss counts little.

    Args:
      matrices: float32 ``[rows, cols]`` of every unit, alike for all that were accumulated over the same steps.
      units: what they are.
      cfg: family, levels and norm.
    """
    squares: list[jax.Array] = [jnp.zeros(())] * len(units)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, unit in enumerate(units):
        groups.setdefault((unit.rows, unit.cols), []).append(i)
    for members in groups.values():
        stacked = jnp.stack([matrices[i] for i in members])
        found = _SQUARES[cfg.family](stacked, units[members[0]], cfg)
        for place, i in enumerate(members):
            squares[i] = found[place]
    table = jnp.maximum(jnp.stack(squares), 0.0)
    norms = jnp.stack([jnp.linalg.norm(matrix) for matrix in matrices])
    return Table(table if cfg.error == "l2sq" else jnp.sqrt(table), norms)


def _by_rank(g: jax.Array, unit: Unit, cfg: LGreco) -> jax.Array:
    """Tails of the squared singular values, ``[B, levels]``."""
    ranks = [int(level) for level in cfg.levels]
    total = jnp.sum(g * g, axis=(1, 2))
    if cfg.svd == "exact":
        sigma = _singular_values(g)
    else:
        # A few columns more than asked for: the last ones of an iterated subspace are its least accurate.
        sigma = _leading_singular_values(g, min(ranks[-1] + 4, unit.rows, unit.cols), cfg)
    kept = jnp.cumsum(sigma**2, axis=1)
    # Summed from the smallest for the exact values, so that a full rank leaves nothing.
    tails = jnp.cumsum((sigma**2)[:, ::-1], axis=1)[:, ::-1]
    tails = jnp.pad(tails, ((0, 0), (0, 1)))

    def left(rank: int) -> jax.Array:
        return tails[:, rank] if cfg.svd == "exact" else total - kept[:, rank - 1]

    missing = jnp.full_like(total, jnp.inf)
    return jnp.stack([left(r) if feasible(unit, c, cfg) else missing for c, r in enumerate(ranks)], axis=1)


def _leading_singular_values(g: jax.Array, rank: int, cfg: LGreco) -> jax.Array:
    q = orthonormal(jax.random.normal(jax.random.key(cfg.seed), (g.shape[0], g.shape[2], rank)))

    def step(_, q):
        return orthonormal(jnp.swapaxes(g, 1, 2) @ orthonormal(g @ q))

    return _singular_values(g @ jax.lax.fori_loop(0, cfg.svd_iters, step, q))


def _singular_values(g: jax.Array) -> jax.Array:
    # One after the other: a batched call may wait for ever on virtual devices, see `orthonormal`.
    return jax.lax.map(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False), g)


def _by_count(g: jax.Array, unit: Unit, cfg: LGreco) -> jax.Array:
    """Sums of all but the k largest squares, ``[B, levels]``."""
    ascending = jnp.sort((g * g).reshape(g.shape[0], -1), axis=1)
    below = jnp.pad(jnp.cumsum(ascending, axis=1), ((0, 0), (1, 0)))
    counts = [count_kept(unit, c, cfg) for c in range(len(cfg.levels))]
    return jnp.stack([below[:, unit.size - k] for k in counts], axis=1)


def _by_bits(g: jax.Array, unit: Unit, cfg: LGreco) -> jax.Array:
    """Squares of what rounding to the nearest level loses, ``[B, levels]``."""
    flat = g.reshape(g.shape[0], -1)
    key = jax.random.key(cfg.seed)

    def lost(x, bits):
        coded = MinMax(bits=bits, bucket=cfg.bucket)
        return jnp.sum((x - coded.decode(coded.encode(x, key), unit.size, key)) ** 2)

    return jnp.stack([jax.vmap(lambda x, b=int(bits): lost(x, b))(flat) for bits in cfg.levels], axis=1)


_SQUARES = {"powersgd": _by_rank, "topk": _by_count, "qsgd": _by_bits}
