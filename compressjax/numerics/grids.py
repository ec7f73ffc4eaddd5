"""Uniform grids ``w = scale * (code - zero)`` with an integer zero, fitted to groups of weights.

Weights come as ``[..., n, out]``; one grid is fitted per entry of the leading axes and per output, over the ``n``.
Every grid holds zero exactly, so zero-padded rows neither move it nor err.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Grid(NamedTuple):
    """Scale and zero, float32 ``[..., out]``; the scale already has the precision in which it will be stored."""

    scale: jax.Array
    zero: jax.Array


def stored(scale: jax.Array, dtype: str) -> jax.Array:
    """``scale`` rounded to its storage dtype and back, kept away from zero and infinity."""
    info = jnp.finfo(dtype)
    tiny = jnp.float32(info.smallest_subnormal)
    return jnp.clip(scale, tiny, jnp.float32(info.max)).astype(dtype).astype(jnp.float32)


def encode(w: jax.Array, grid: Grid, bits: int) -> jax.Array:
    """Nearest codes, float32 with integer values; ``grid`` broadcasts against ``w``.

    Rounds half to even and then adds the zero, in this order, as the reference does.
    """
    return jnp.clip(jnp.round(w / grid.scale) + grid.zero, 0, 2**bits - 1)


def decode(codes: jax.Array, grid: Grid) -> jax.Array:
    """``scale * (codes - zero)``."""
    return grid.scale * (codes - grid.zero)


def _ends(w, sym):
    low = jnp.minimum(jnp.min(w, axis=-2), 0)
    high = jnp.maximum(jnp.max(w, axis=-2), 0)
    if sym:
        high = jnp.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    return jnp.where(empty, -1, low), jnp.where(empty, 1, high)


def _between(low, high, bits, sym, dtype):
    levels = 2**bits - 1
    scale = stored((high - low) / levels, dtype)
    if sym:
        return Grid(scale, jnp.full_like(scale, 2 ** (bits - 1)))
    return Grid(scale, jnp.clip(jnp.round(-low / scale), 0, levels))


def minmax_grid(w: jax.Array, bits: int, *, sym: bool = False, dtype: str = "float16") -> Grid:
    """The grid from the smallest to the largest weight, widened to hold zero.

    Args:
      w: float32 ``[..., n, out]``.
      bits: code width.
      sym: mirror the range; the zero is then ``2**(bits-1)``. An all-positive group is mirrored too.
      dtype: storage dtype of the scale.
    """
    return _between(*_ends(w, sym), bits, sym, dtype)


def mse_grid(
    w: jax.Array,
    bits: int,
    *,
    sym: bool = False,
    dtype: str = "float16",
    norm: float = 2.4,
    steps: int = 100,
    max_shrink: float = 0.8,
    weight: jax.Array | None = None,
) -> Grid:
    """The shrunken min-max grid with the least ``sum weight * |ŵ - w|^norm``.

    Tries ranges shrunk by ``1 - i/steps`` for ``i < max_shrink*steps``. At 2 bits the asymmetric zero's other integer
    neighbour is tried too, since rounding it moves the whole grid by up to half a step.

    Args:
      w, bits, sym, dtype: as for :func:`minmax_grid`.
      norm: exponent of the error.
      steps, max_shrink: fineness and depth of the search.
      weight: importance of each weight, broadcast against ``w``; None for equal ones.
    """
    low, high = _ends(w, sym)
    levels = 2**bits - 1
    neighbours = 2 if bits == 2 and not sym else 1

    def error(grid):
        wide = Grid(grid.scale[..., None, :], grid.zero[..., None, :])
        miss = jnp.abs(decode(encode(w, wide, bits), wide) - w)
        miss = miss**2 if norm == 2 else miss**norm
        return jnp.sum(miss if weight is None else miss * weight, axis=-2)

    def candidate(i, best):
        shrink = 1 - (i // neighbours).astype(jnp.float32) / steps
        grid = _between(low * shrink, high * shrink, bits, sym, dtype)
        if neighbours == 2:
            exact = -low * shrink / grid.scale
            other = jnp.where(exact > grid.zero, grid.zero + 1, grid.zero - 1)
            grid = Grid(grid.scale, jnp.where(i % 2 == 1, jnp.clip(other, 0, levels), grid.zero))
        loss = error(grid)
        best_grid, best_loss = best
        better = loss < best_loss
        return Grid(*(jnp.where(better, new, old) for new, old in zip(grid, best_grid, strict=True))), jnp.where(
            better, loss, best_loss
        )

    first = _between(low, high, bits, sym, dtype)
    count = max(1, int(max_shrink * steps)) * neighbours
    return jax.lax.fori_loop(1, count, candidate, (first, error(first)))[0]


def grouped(w: jax.Array, group: int) -> jax.Array:
    """``[in, out]`` as ``[groups, group, out]``, the last group padded with zero rows."""
    rows, cols = w.shape
    groups = -(-rows // group)
    return jnp.pad(w, ((0, groups * group - rows), (0, 0))).reshape(groups, group, cols)
