"""PowerQuant: data-free rounding on a grid that is uniform after a power map, with the exponent searched.

``a* = argmin_a |W - dec_a(enc_a(W))|²`` (PowerQuant: Yvinec et al., 2023, arXiv 2301.09858; the grid of NUPES: Yvinec
et al., 2023, arXiv 2308.05600). The paper minimises with Nelder-Mead; here a scan of the interval comes first, because
rounding makes the error jump, and golden section refines the best place. The range is searched beside the exponent
unless ``clip="max"``: at few bits a shrunken uniform range beats an unshrunken power grid, so only both together win.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.leaf.power import Power, pack_power
from compressjax.numerics import grids, power
from compressjax.quantization.rtn import RTN, dense_weight, output_errors, round_groups
from compressjax.select import is_matrix, weights

_GOLDEN = 0.6180339887498949
_SCAN, _REFINE = 9, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerQuant:
    """Round to nearest in the power domain.

    Attributes:
      bits: code width, 2 to 8.
      exponent: ``a``; None searches it for every matrix. :func:`shared_exponent` finds one for a whole model.
      granularity: "channel": a scale per output and group; "tensor": one for the matrix.
      group: inputs that share a scale, -1 for all; "channel" only.
      clip: "mse" searches each scale among shares of the largest weight; "max" takes the largest weight.
      low, high: interval of the exponent, ``0 < low < high``.
      act_bits: width of activation codes in the leaf's ``matmul``, 2 to 8; None leaves activations alone.
      scale_dtype: storage dtype of the scales; codes are chosen with the stored value.
    """

    bits: int = 4
    exponent: float | None = None
    granularity: Literal["channel", "tensor"] = "channel"
    group: int = -1
    clip: Literal["mse", "max"] = "mse"
    low: float = 0.2
    high: float = 1.0
    act_bits: int | None = None
    scale_dtype: str = "float16"

    def __post_init__(self):
        check_power_fields(self)


def check_power_fields(cfg: Any) -> None:
    """Validates the fields that the power-grid configs share.

    Raises:
      ValueError: naming the config, the field, what is allowed and what was given.
    """
    name = type(cfg).__name__
    if cfg.bits not in range(2, 9):
        raise ValueError(f"{name}.bits must be in 2..8 (one bit has no grid), got {cfg.bits}")
    if cfg.act_bits is not None and cfg.act_bits not in range(2, 9):
        raise ValueError(f"{name}.act_bits must be None or in 2..8, got {cfg.act_bits}")
    if cfg.exponent is not None and not 0 < cfg.exponent < float("inf"):
        raise ValueError(f"{name}.exponent must be None or a finite number > 0, got {cfg.exponent}")
    if not 0 < cfg.low < cfg.high < float("inf"):
        raise ValueError(f"{name}.low and high must be 0 < low < high, got {cfg.low} and {cfg.high}")
    if cfg.granularity not in ("channel", "tensor") or cfg.clip not in ("mse", "max"):
        raise ValueError(
            f"{name}.granularity must be 'channel' or 'tensor' and clip 'mse' or 'max', got {cfg.granularity!r} and "
            f"{cfg.clip!r}"
        )
    if cfg.group != -1 and cfg.group < 2:
        raise ValueError(f"{name}.group must be -1 (all inputs) or >= 2, got {cfg.group}")
    if cfg.granularity == "tensor" and cfg.group != -1:
        raise ValueError(f"{name}.group={cfg.group} needs granularity='channel'; one scale per tensor has no groups")
    if cfg.scale_dtype not in ("float16", "bfloat16", "float32"):
        raise ValueError(f"{name}.scale_dtype must be float16, bfloat16 or float32, got {cfg.scale_dtype!r}")


class PowerGrid(NamedTuple):
    """A fitted grid.

    Attributes:
      exponent: float32 scalar.
      scale: as stored, float32 ``[groups, out]`` or ``[1, 1]``.
      error: squared weight error at nearest codes, float32 scalar.
    """

    exponent: jax.Array
    scale: jax.Array
    error: jax.Array


def blocks_of(w: jax.Array, cfg: Any) -> jax.Array:
    """Weights that share a scale along the middle axis: ``[groups, group, out]``, or ``[1, in * out, 1]``."""
    if cfg.granularity == "tensor":
        return w.reshape(1, -1, 1)
    return grids.grouped(w, w.shape[0] if cfg.group == -1 else min(cfg.group, w.shape[0]))


def fit_scale(blocks: jax.Array, exponent: jax.Array, cfg: Any) -> PowerGrid:
    """Scales for one exponent, ``[groups, out]`` of ``blocks [groups, n, out]``."""
    peak = jnp.max(jnp.abs(blocks), axis=1)
    # A group of zeros has codes 0 at any scale.
    peak = jnp.where(peak > 0, peak, 1)

    def at(share):
        scale = grids.stored(peak * share, cfg.scale_dtype)
        wide = scale[:, None]
        return scale, jnp.sum(power.nearest_error(blocks, exponent, wide, cfg.bits), axis=1)

    best = at(jnp.float32(1))
    if cfg.clip == "mse":

        def better(best, share):
            scale, loss = at(share)
            take = loss < best[1]
            return (jnp.where(take, scale, best[0]), jnp.where(take, loss, best[1])), None

        best, _ = jax.lax.scan(better, best, jnp.arange(0.95, 0.29, -0.05, dtype=jnp.float32))
    return PowerGrid(exponent, best[0], jnp.sum(best[1]))


def search_exponent(error: Any, low: float, high: float) -> jax.Array:
    """Minimiser of ``error(a)`` on ``[low, high]``: a scan, then golden section around its best point.

    Args:
      error: float32 scalar to float32 scalar, traceable.
      low, high: interval.

    Returns:
      float32 scalar, the best exponent that was tried.
    """
    tried = jnp.linspace(low, high, _SCAN, dtype=jnp.float32)
    losses = jax.lax.map(error, tried)
    first = jnp.argmin(losses)
    step = jnp.float32((high - low) / (_SCAN - 1))
    a, b = jnp.maximum(tried[first] - step, low), jnp.minimum(tried[first] + step, high)

    def narrow(_, state):
        a, b, best, least = state
        inner = jnp.stack([b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)])
        found = jax.lax.map(error, inner)
        left = found[0] < found[1]
        now = jnp.argmin(found)
        better = found[now] < least
        return (
            jnp.where(left, a, inner[0]),
            jnp.where(left, inner[1], b),
            jnp.where(better, inner[now], best),
            jnp.minimum(found[now], least),
        )

    return jax.lax.fori_loop(0, _REFINE, narrow, (a, b, tried[first], losses[first]))[2]


def fit_power_grid(w: jax.Array, cfg: Any) -> PowerGrid:
    """Exponent (the config's, or searched) and scales of one weight ``[in, out]``, float32."""
    blocks = blocks_of(w, cfg)
    if cfg.exponent is not None:
        return fit_scale(blocks, jnp.float32(cfg.exponent), cfg)
    exponent = search_exponent(lambda a: fit_scale(blocks, a, cfg).error, cfg.low, cfg.high)
    return fit_scale(blocks, exponent, cfg)


def shared_exponent(params: Any, cfg: PowerQuant) -> float:
    """One exponent for all kernels of a tree: the minimiser of the sum of their relative errors.

    A shared exponent is what lets an activation function absorb the power map. Relative errors, for the sum of plain
    ones is that of the largest layer.

    Args:
      params: nested dicts of arrays; stacked kernels count once per layer.
      cfg: its exponent is ignored.

    Raises:
      ValueError: when there is no kernel.
    """
    kernels = [w for path, w in weights(params).items() if is_matrix(path, w)]
    if not kernels:
        raise ValueError("params has no kernel to find an exponent for")

    def relative(w, a):
        flat = w.astype(jnp.float32).reshape(-1, *w.shape[-2:])
        return jnp.sum(jax.lax.map(lambda m: fit_scale(blocks_of(m, cfg), a, cfg).error / jnp.sum(m**2), flat))

    return float(
        jax.jit(lambda ws: search_exponent(lambda a: sum(relative(w, a) for w in ws), cfg.low, cfg.high))(kernels)
    )


def wide_scale(scale: jax.Array, rows: int, cfg: Any) -> jax.Array:
    """Scales ``[groups, out]`` by input, ``[in, out]``; ``[1, 1]`` as it is."""
    if cfg.granularity == "tensor":
        return scale
    group = rows if cfg.group == -1 else min(cfg.group, rows)
    return jnp.repeat(scale, group, axis=0)[:rows] if scale.shape[0] > 1 else scale


def power_leaf(codes: jax.Array, grid: PowerGrid, cfg: Any) -> Power:
    """Packs codes ``[in, out]`` as the config says."""
    rows = codes.shape[0]
    group = rows if cfg.group == -1 else min(cfg.group, rows)
    scale = grid.scale.astype(cfg.scale_dtype)
    return pack_power(codes, scale, grid.exponent, bits=cfg.bits, group=group, act_bits=cfg.act_bits)


def power_info(w: jax.Array, rounded: jax.Array, xtx: jax.Array | None, cfg: Any) -> MatrixInfo:
    """Errors beside those of plain rounding with the same bits and groups."""
    group = w.shape[0] if cfg.group == -1 else min(cfg.group, w.shape[0])
    plain = round_groups(w, group, RTN(bits=cfg.bits, group=cfg.group, scale_dtype=cfg.scale_dtype))[1]
    error, rounding_error, energy = output_errors(w, rounded, plain, xtx)
    return MatrixInfo(
        error=error,
        rounding_error=rounding_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=jnp.int32(0),
        fallback=jnp.bool_(False),
    )


@leaf_rule.register(PowerQuant)
def _(w, cfg, stats, key):
    w = dense_weight(w, cfg)
    grid = fit_power_grid(w, cfg)
    wide = wide_scale(grid.scale, w.shape[0], cfg)
    codes = power.encode(w, grid.exponent, wide, cfg.bits)
    rounded = power.decode(codes, grid.exponent, wide, cfg.bits)
    return power_leaf(codes, grid, cfg), power_info(w, rounded, None if stats is None else stats.xtx, cfg)


@statistic_for.register(PowerQuant)
def _(cfg):
    return None
