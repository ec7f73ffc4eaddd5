"""Round to nearest: the baseline that every quantiser has to beat."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.driver import MatrixInfo, leaf_rule, statistic_for
from compressjax.leaf import Affine, pack_affine
from compressjax.numerics import grids
from compressjax.numerics.linalg import quadratic


@dataclasses.dataclass(frozen=True, kw_only=True)
class RTN:
    """Round every weight to the nearest point of its group's uniform grid.

    Attributes:
      bits: code width, 2 to 8.
      group: inputs that share a scale; -1 for all; the last group is short when it does not divide the inputs.
      sym: symmetric grid without a stored zero.
      grid: "minmax", or "mse" for the shrunken range with the least ``|ŵ - w|^mse_norm``.
      mse_norm, mse_steps, mse_max_shrink: exponent, fineness and depth of that search.
      scale_dtype: storage dtype of the scales; codes are chosen with the stored value.
    """

    bits: int = 4
    group: int = 128
    sym: bool = False
    grid: Literal["minmax", "mse"] = "minmax"
    mse_norm: float = 2.4
    mse_steps: int = 100
    mse_max_shrink: float = 0.8
    scale_dtype: str = "float16"

    def __post_init__(self):
        check_grid_fields(self)


def check_grid_fields(cfg: Any) -> None:
    """Validates the fields that every uniform-grid config shares.

    Raises:
      ValueError: naming the config, the field, what is allowed and what was given.
    """
    name = type(cfg).__name__
    if cfg.bits not in range(2, 9):
        raise ValueError(f"{name}.bits must be in 2..8, got {cfg.bits}")
    if cfg.group != -1 and cfg.group < 2:
        raise ValueError(f"{name}.group must be -1 (all inputs) or >= 2, got {cfg.group}")
    if cfg.scale_dtype not in ("float16", "bfloat16", "float32"):
        raise ValueError(f"{name}.scale_dtype must be float16, bfloat16 or float32, got {cfg.scale_dtype!r}")
    if not cfg.mse_norm > 0:
        raise ValueError(f"{name}.mse_norm must be > 0, got {cfg.mse_norm}")
    if cfg.mse_steps < 1 or not 0 < cfg.mse_max_shrink < 1:
        raise ValueError(
            f"{name}.mse_steps must be >= 1 and mse_max_shrink in (0, 1), got {cfg.mse_steps} and {cfg.mse_max_shrink}"
        )


def dense_weight(w: Any, cfg: Any) -> jax.Array:
    """``w`` in float32.

    Raises:
      TypeError: when it is compressed already.
    """
    if not isinstance(w, jax.Array):
        raise TypeError(
            f"{type(cfg).__name__} quantises dense weights, got a {type(w).__name__} leaf; materialise it with "
            "dense(), or leave it alone by a rule"
        )
    return w.astype(jnp.float32)


def fit_grid(w: jax.Array, cfg: Any, weight: jax.Array | None = None) -> grids.Grid:
    """The grid that a config asks for, over the second-last axis of ``w``."""
    if cfg.grid == "minmax":
        return grids.minmax_grid(w, cfg.bits, sym=cfg.sym, dtype=cfg.scale_dtype)
    return grids.mse_grid(
        w,
        cfg.bits,
        sym=cfg.sym,
        dtype=cfg.scale_dtype,
        norm=cfg.mse_norm,
        steps=cfg.mse_steps,
        max_shrink=cfg.mse_max_shrink,
        weight=weight,
    )


def round_groups(w: jax.Array, group: int, cfg: Any) -> tuple[jax.Array, jax.Array, grids.Grid]:
    """Rounds ``[in, out]`` group by group: codes and rounded weight ``[in, out]``, grid ``[groups, out]``."""
    blocks = grids.grouped(w, group)
    grid = fit_grid(blocks, cfg)
    wide = grids.Grid(grid.scale[:, None, :], grid.zero[:, None, :])
    codes = grids.encode(blocks, wide, cfg.bits)
    flat = [a.reshape(-1, w.shape[1])[: w.shape[0]] for a in (codes, grids.decode(codes, wide))]
    return flat[0], flat[1], grid


def affine_from_grid(
    codes: jax.Array, grid: grids.Grid, group: int, cfg: Any, g_idx: jax.Array | None = None
) -> Affine:
    """Packs codes and an integer-zero grid as the config says."""
    return pack_affine(
        codes,
        grid.scale.astype(cfg.scale_dtype),
        None if cfg.sym else grid.zero.astype(jnp.uint8),
        bits=cfg.bits,
        group=group,
        zero_kind="none" if cfg.sym else "int",
        g_idx=g_idx,
    )


def rtn(w: jax.Array, cfg: RTN) -> Affine:
    """Rounds one weight to nearest.

    ``ŵ = s (clip(round(w/s) + z, 0, 2^b - 1) - z)`` per group and output.

    Args:
      w: ``[in, out]``, floating point.
      cfg: the grid.

    Returns:
      An :class:`Affine` leaf.

    >>> from compressjax.ops import dense
    >>> leaf = rtn(jnp.asarray([[0.0], [1.0], [2.0], [3.0]]), RTN(bits=2, group=-1))
    >>> dense(leaf)[:, 0].tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    w = dense_weight(w, cfg)
    group = w.shape[0] if cfg.group == -1 else min(cfg.group, w.shape[0])
    codes, _, grid = round_groups(w, group, cfg)
    return affine_from_grid(codes, grid, group, cfg)


def output_errors(w: jax.Array, rounded: jax.Array, plain: jax.Array, h: jax.Array | None):
    """Squared output error of ``rounded`` and of ``plain`` rounding, and the output energy of ``w``."""
    if h is None:
        return jnp.sum((w - rounded) ** 2), jnp.sum((w - plain) ** 2), jnp.sum(w**2)
    return quadratic(w - rounded, h), quadratic(w - plain, h), quadratic(w, h)


@leaf_rule.register(RTN)
def _(w, cfg, stats: Record | None, key):
    w = dense_weight(w, cfg)
    group = w.shape[0] if cfg.group == -1 else min(cfg.group, w.shape[0])
    codes, rounded, grid = round_groups(w, group, cfg)
    plain = rounded if cfg.grid == "minmax" else round_groups(w, group, dataclasses.replace(cfg, grid="minmax"))[1]
    error, rounding_error, energy = output_errors(w, rounded, plain, None if stats is None else stats.xtx)
    info = MatrixInfo(
        error=error,
        rounding_error=rounding_error,
        energy=energy,
        damp=jnp.float32(0),
        dead=jnp.int32(0),
        fallback=jnp.bool_(False),
    )
    return affine_from_grid(codes, grid, group, cfg), info


@statistic_for.register(RTN)
def _(cfg):
    return None
