"""SpQR's grids: min-max with a real zero, their quantised statistics, and what leaving one weight out gains."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.leaf.two_level import decode_statistic, positive, spread_runs
from compressjax.numerics.grids import Grid, stored
from compressjax.quantization.spqr_config import SpQR

# A statistic's grid is never finer than this share of its largest value, so that its zero stays within what float16
# holds to a few units in 2**11. Equal statistics are thereby stored exactly, to that precision.
_FINEST_STEP = 2.0**-12


class Statistics(NamedTuple):
    """The grids of one group of inputs, as stored and as decoded.

    Attributes:
      scale_codes, zero_codes: float32 with integer values ``[out]``; the float16 numbers themselves without
        ``stat_bits``.
      scale_scale, scale_zero, zero_scale, zero_zero: float16 values ``[runs]``; zeros where not stored.
    """

    scale_codes: jax.Array
    zero_codes: jax.Array
    scale_scale: jax.Array
    scale_zero: jax.Array
    zero_scale: jax.Array
    zero_zero: jax.Array


def grid_between(low: jax.Array, high: jax.Array, cfg: SpQR) -> Grid:
    """The grid of ``2**bits`` points from ``low`` to ``high``, ``w = scale * (code - zero)`` with a real zero.

    The range is not widened to hold 0 (but see ``SpQR.round_zero``), so the zero may lie outside of the codes. Equal
    ends are the exception: their grid goes from 0 to that value, and is a point when it is 0. The reference gives them
    the grid from -1 to 1, whose scale spoils the statistics of its run and which may miss 0 by half a step.
    """
    levels = 2**cfg.bits - 1
    flat = low == high
    if cfg.round_zero:
        flat = jnp.ones_like(flat)
    low, high = jnp.where(flat, jnp.minimum(low, 0), low), jnp.where(flat, jnp.maximum(high, 0), high)
    if cfg.sym:
        high = jnp.maximum(jnp.abs(low), high)
        low = jnp.where(low < 0, -high, low)
    point = low == high
    scale = jnp.where(point, jnp.float32(jnp.finfo(jnp.float16).smallest_subnormal), (high - low) / levels)
    if cfg.sym:
        return Grid(scale, jnp.full_like(scale, 2 ** (cfg.bits - 1)))
    # A point's zero is nobody's business: the middle disturbs the other zeros of its run least.
    zero = jnp.where(point, levels / 2, -low / scale)
    return Grid(scale, jnp.clip(jnp.round(zero), 0, levels) if cfg.round_zero else zero)


def encode(w: jax.Array, grid: Grid, bits: int) -> jax.Array:
    """Nearest codes, float32 with integer values; the real zero is added before rounding."""
    return jnp.clip(jnp.round(w / grid.scale + grid.zero), 0, 2**bits - 1)


def decode(codes: jax.Array, grid: Grid) -> jax.Array:
    """``scale * (codes - zero)``."""
    return grid.scale * (codes - grid.zero)


def _statistic_grid(values, bits, stat_group):
    """Scale and zero per run of ``stat_group`` outputs, float16 values."""
    cols = values.shape[-1]
    # A last, short run is filled with copies of the last output, which do not move its ends.
    runs = jnp.pad(values, (0, -cols % stat_group), mode="edge").reshape(-1, stat_group)
    low, high = jnp.min(runs, axis=1), jnp.max(runs, axis=1)
    largest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    step = jnp.maximum((high - low) / (2**bits - 1), largest * _FINEST_STEP)
    scale = stored(jnp.where(step > 0, step, 1), "float16")
    return scale, _in_half(-low / scale)


def _in_half(values):
    most = jnp.float32(jnp.finfo(jnp.float16).max)
    return jnp.clip(values, -most, most).astype(jnp.float16).astype(jnp.float32)


def _quantised(values, bits, stat_group):
    scale, zero = _statistic_grid(values, bits, stat_group)
    wide = Grid(spread_runs(scale, stat_group, values.shape[-1]), spread_runs(zero, stat_group, values.shape[-1]))
    return encode(values, wide, bits), scale, zero


def integer_zeros(cfg: SpQR) -> bool:
    """Whether zeros are stored as codes of their own, without a second level."""
    return cfg.round_zero and cfg.stat_bits is not None and cfg.stat_bits >= cfg.bits


def quantise_statistics(grid: Grid, cfg: SpQR) -> tuple[Statistics, Grid]:
    """What is stored of a group's grids ``[out]``, and the grid that a decoder makes of it.

    Each run of ``stat_group`` scales gets a min-max grid with a real zero in float16, and so do the zeros. The second
    grid is rounded to float16 before it is used, where the reference rounds it when it saves.
    """
    runs = -(-grid.scale.shape[-1] // cfg.stat_group)
    blank = jnp.zeros((runs,), jnp.float32)
    if cfg.stat_bits is None:
        scale, zero = stored(grid.scale, "float16"), _in_half(grid.zero)
        return Statistics(scale, zero, blank, blank, blank, blank), Grid(scale, zero)
    scale_codes, scale_scale, scale_zero = _quantised(grid.scale, cfg.stat_bits, cfg.stat_group)
    scale = positive(decode_statistic(scale_codes, scale_scale, scale_zero, cfg.stat_group))
    if integer_zeros(cfg):
        return Statistics(scale_codes, grid.zero, scale_scale, scale_zero, blank, blank), Grid(scale, grid.zero)
    zero_codes, zero_scale, zero_zero = _quantised(grid.zero, cfg.stat_bits, cfg.stat_group)
    zero = decode_statistic(zero_codes, zero_scale, zero_zero, cfg.stat_group)
    return Statistics(scale_codes, zero_codes, scale_scale, scale_zero, zero_scale, zero_zero), Grid(scale, zero)


def ends(rows: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest of the ``real`` rows of ``[n, out]``, each ``[out]``."""
    return (
        jnp.min(jnp.where(real, rows, jnp.inf), axis=0),
        jnp.max(jnp.where(real, rows, -jnp.inf), axis=0),
    )


def leave_one_out_gain(rows: jax.Array, pivots: jax.Array, real: jax.Array, cfg: SpQR) -> jax.Array:
    """How much the error of a group falls when one weight is neither fitted nor quantised.

    ``gain_j = err(all) - err(without j)`` with ``err = sum_k ((ŵ_k - w_k) / U_kk)²``; "without j" fits the grid to the
    others and sums their errors. Only the smallest and the largest weight move the grid, and only when nothing ties
    with them, so three fits give all ``n`` gains: every other gain is the weight's own error.

    Args:
      rows: weights ``[n, out]``.
      pivots: ``U_kk``, ``[n, 1]``.
      real: bool ``[n, 1]``, False for padding.
      cfg: the grid; its statistics are not quantised here.

    Returns:
      float32 ``[n, out]``, 0 for padding.
    """

    def own_errors(low, high):
        grid = grid_between(low[None], high[None], cfg)
        miss = (decode(encode(rows, grid, cfg.bits), grid) - rows) / pivots
        return jnp.where(real, miss**2, 0)

    low, high = ends(rows, real)
    place = jnp.arange(rows.shape[0])[:, None]
    lowest = place == jnp.argmin(jnp.where(real, rows, jnp.inf), axis=0)[None]
    highest = place == jnp.argmax(jnp.where(real, rows, -jnp.inf), axis=0)[None]
    plain = own_errors(low, high)
    total = jnp.sum(plain, axis=0)
    second_low = jnp.min(jnp.where(real & ~lowest, rows, jnp.inf), axis=0)
    second_high = jnp.max(jnp.where(real & ~highest, rows, -jnp.inf), axis=0)
    # A group of one real row has nothing left to fit without it: it then keeps its own error as its gain.
    alone = jnp.isinf(second_low)
    without_low = own_errors(jnp.where(alone, low, second_low), high)
    without_high = own_errors(low, jnp.where(alone, high, second_high))
    gain_low = total - jnp.sum(jnp.where(lowest, 0, without_low), axis=0)
    gain_high = total - jnp.sum(jnp.where(highest, 0, without_high), axis=0)
    return jnp.where(lowest, gain_low[None], jnp.where(highest, gain_high[None], plain))


def fit_group(
    rows: jax.Array, pivots: jax.Array, real: jax.Array, threshold: jax.Array, room: jax.Array, cfg: SpQR
) -> tuple[Statistics, Grid]:
    """Grids of one group ``[n, out]`` on the weights as the sweep has brought them up to date.

    With ``cfg.loo``, weights whose gain exceeds ``threshold`` are first replaced by the mean of the others of their
    group and output, unless there are no others. Nothing is replaced when more are likely outliers than there is
    ``room`` for: a grid that leaves out a weight which it then has to hold is worse than a wide one.
    """
    if cfg.loo and cfg.has_outliers:
        likely = leave_one_out_gain(rows, pivots, real, cfg) > threshold
        stay = real & ~likely
        fits = jnp.sum(likely, dtype=jnp.int32) <= room
        likely = likely & fits & jnp.any(stay, axis=0, keepdims=True)
        mean = jnp.sum(jnp.where(stay, rows, 0), axis=0) / jnp.maximum(jnp.sum(stay, axis=0, dtype=jnp.float32), 1)
        rows = jnp.where(likely, mean[None], rows)
    return quantise_statistics(grid_between(*ends(rows, real), cfg), cfg)
