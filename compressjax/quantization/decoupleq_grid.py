"""Uniform grids with a real zero, as decoupleQ moves them: stored form, rounding to them, and where they start.

A grid is ``ŵ = scale * (u - zero)`` with unsigned codes ``u`` and both numbers ``[groups, out]`` real. The paper's form
``s q + z`` with signed ``q`` in ``[n, p]``, ``n = -2^(b-1)``, is the same with ``u = q - n``, ``scale = s`` and
``zero = -z/s - n``.
"""

import jax
import jax.numpy as jnp

from compressjax.numerics.grids import Grid, decode

# A zero further out than this stores no better than a smaller one: the group's spread is below its offset's precision.
_FURTHEST_ZERO = 1e4


def by_group(w: jax.Array, group: int) -> jax.Array:
    """``[in, out]`` as ``[groups, group, out]``."""
    return w.reshape(-1, group, w.shape[-1])


def wide(grid: Grid) -> Grid:
    """``grid`` laid out against ``[groups, group, out]``."""
    return Grid(grid.scale[:, None], grid.zero[:, None])


def round_to(w: jax.Array, grid: Grid, bits: int) -> jax.Array:
    """Nearest codes, halves up as the reference does; float32 with integer values."""
    return jnp.clip(jnp.floor(w / grid.scale + grid.zero + 0.5), 0, 2**bits - 1)


def round_all(w: jax.Array, grid: Grid, bits: int, group: int) -> jax.Array:
    """Codes of ``[in, out]``."""
    return round_to(by_group(w, group), wide(grid), bits).reshape(w.shape)


def decode_all(codes: jax.Array, grid: Grid, group: int) -> jax.Array:
    """The weight that codes ``[in, out]`` stand for."""
    return decode(by_group(codes, group), wide(grid)).reshape(codes.shape)


def errors(w: jax.Array, rounded: jax.Array, h: jax.Array) -> jax.Array:
    """``(ŵ - w)ᵀ H (ŵ - w)`` of every output, ``[out]``."""
    miss = w - rounded
    return jnp.sum(miss * jnp.matmul(h, miss, precision="highest"), axis=0)


def stored_grid(scale: jax.Array, offset: jax.Array, mean_code: jax.Array, *, bits: int, sym: bool, dtype: str) -> Grid:
    """The grid ``scale * u + offset`` in numbers that storage keeps exactly.

    Where rounding changes the scale, the offset is moved so that the group's mean code still means the same weight.

    Args:
      scale, offset: float32 ``[groups, out]``; the scale may be negative or vanish.
      mean_code: mean of the codes of each group, ``[groups, out]``.
      bits, sym, dtype: code width, whether the zero is fixed at ``2**(bits-1)``, and the storage dtype.
    """
    info = jnp.finfo(dtype)
    size = jnp.abs(scale)
    if not sym:
        size = jnp.maximum(size, jnp.abs(offset) / _FURTHEST_ZERO)
    size = jnp.clip(size, jnp.float32(info.smallest_subnormal), jnp.float32(info.max))
    kept = (jnp.where(scale < 0, -size, size)).astype(dtype).astype(jnp.float32)
    if sym:
        return Grid(kept, jnp.full_like(kept, 2.0 ** (bits - 1)))
    offset = offset + (scale - kept) * mean_code
    zero = jnp.clip(-offset / kept, -jnp.float32(info.max), jnp.float32(info.max))
    return Grid(kept, zero.astype(dtype).astype(jnp.float32))


def minmax_ends(w: jax.Array, group: int, sym: bool) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest weight of every group, the range widened to hold zero; ``[groups, out]`` each."""
    blocks = by_group(w, group)
    low, high = jnp.minimum(jnp.min(blocks, axis=1), 0), jnp.maximum(jnp.max(blocks, axis=1), 0)
    if sym:
        high = jnp.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    return jnp.where(empty, -1, low), jnp.where(empty, 1, high)


def between(low: jax.Array, high: jax.Array, bits: int, sym: bool, dtype: str) -> Grid:
    """The grid whose first and last code mean ``low`` and ``high``."""
    levels = 2**bits - 1
    middle = jnp.full_like(low, levels / 2)
    return stored_grid((high - low) / levels, low, middle, bits=bits, sym=sym, dtype=dtype)


def shrunken_grid(w: jax.Array, h: jax.Array, group: int, cfg) -> Grid:
    """The min-max grid shrunk, by one factor per output, to the least ``(ŵ - w)ᵀ H (ŵ - w)`` of plain rounding.

    The factors are ``1 - i / shrink_steps``; every ``shrink_stride``-th is tried, then those half as far away on either
    side of each output's best, and so on down to neighbours.

    Args:
      w: ``[in, out]``.
      h: ``[in, in]``.
      group: inputs per group.
      cfg: ``bits``, ``sym``, ``scale_dtype``, ``shrink_steps``, ``shrink_stride`` and ``max_shrink``.
    """
    low, high = minmax_ends(w, group, cfg.sym)
    count = max(1, int(cfg.max_shrink * cfg.shrink_steps))

    def grid_of(index):
        factor = (1 - index.astype(jnp.float32) / cfg.shrink_steps)[None]
        return between(low * factor, high * factor, cfg.bits, cfg.sym, cfg.scale_dtype)

    def loss_of(index):
        grid = grid_of(index)
        return errors(w, decode_all(round_all(w, grid, cfg.bits, group), grid, group), h)

    def attempt(best, index):
        loss = loss_of(index)
        better = loss < best[1]
        return (jnp.where(better, index, best[0]), jnp.where(better, loss, best[1])), None

    outputs = w.shape[1]
    start = jnp.zeros((outputs,), jnp.int32), jnp.full((outputs,), jnp.inf, jnp.float32)
    coarse = jnp.arange(0, count, cfg.shrink_stride, dtype=jnp.int32)
    best, _ = jax.lax.scan(lambda b, i: attempt(b, jnp.full((outputs,), i)), start, coarse)

    def beside(best, step):
        centre = best[0]
        best, _ = attempt(best, jnp.clip(centre - step, 0, count - 1))
        return attempt(best, jnp.clip(centre + step, 0, count - 1))

    halves = [cfg.shrink_stride >> k for k in range(1, cfg.shrink_stride.bit_length())]
    if halves:
        best, _ = jax.lax.scan(beside, best, jnp.asarray(halves, jnp.int32))
    return grid_of(best[0])
