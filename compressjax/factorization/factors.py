"""What the low-rank methods share: which rank a config means, and how factors are stored."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.driver import leaf_rule, statistic_for
from compressjax.leaf.low_rank import LowRank, low_rank
from compressjax.ops import dense

DTYPES = ("float16", "bfloat16", "float32")


def break_even_rank(rows: int, cols: int) -> int:
    """The largest rank at which two factors hold fewer numbers than the matrix.

    >>> break_even_rank(576, 576), break_even_rank(576, 192)
    (287, 143)
    """
    return (rows * cols - 1) // (rows + cols)


def check_rank_fields(cfg: Any) -> None:
    """Validates ``rank``, ``reduction``, ``multiple``, ``dtype`` and ``factors`` of a config.

    Raises:
      ValueError: naming the config, the field, what is allowed and what was given.
      TypeError: ``factors`` is not a method.
    """
    name = type(cfg).__name__
    if cfg.rank is not None and (isinstance(cfg.rank, bool) or not isinstance(cfg.rank, int) or cfg.rank < 1):
        raise ValueError(f"{name}.rank must be an integer >= 1, got {cfg.rank!r}")
    if not 0 <= cfg.reduction < 1:
        raise ValueError(f"{name}.reduction must be in [0, 1), got {cfg.reduction}")
    if cfg.multiple < 1:
        raise ValueError(f"{name}.multiple must be >= 1, got {cfg.multiple}")
    check_storage_fields(cfg)


def check_storage_fields(cfg: Any) -> None:
    """Validates ``dtype`` and ``factors``; errors as :func:`check_rank_fields`."""
    name = type(cfg).__name__
    if cfg.dtype not in DTYPES:
        raise ValueError(f"{name}.dtype must be one of {DTYPES}, got {cfg.dtype!r}")
    if cfg.factors is not None and not leaf_rule.knows(cfg.factors):
        raise TypeError(f"{name}.factors must be a method such as RTN or GPTQ, or None, got {cfg.factors!r}")


def rank_of(cfg: Any, rows: int, cols: int) -> int:
    """The rank for a weight ``[rows, cols]``: given, or ``(1 - reduction) min(rows, cols)`` to the nearest multiple.

    Raises:
      ValueError: a rank above the smaller side.
    """
    most = min(rows, cols)
    if cfg.rank is None:
        wanted = (1 - cfg.reduction) * most / cfg.multiple
        return min(most, max(1, round(wanted)) * cfg.multiple)
    if cfg.rank > most:
        raise ValueError(
            f"{type(cfg).__name__}.rank must be at most {most} for a weight {(rows, cols)}, got {cfg.rank}"
        )
    return cfg.rank


def second_moment(stats: Record | None, cfg: Any) -> jax.Array:
    """``xtx`` of a record, summed not averaged: a fit does not depend on the scale.

    Raises:
      ValueError: there is none.
    """
    if stats is None or stats.xtx is None:
        raise ValueError(f"{type(cfg).__name__} needs Hessian statistics: record.xtx is missing")
    return stats.xtx


def stored(left: jax.Array, right: jax.Array, stats: Record | None, cfg: Any) -> LowRank:
    """Factors in the config's dtype, or each compressed by ``cfg.factors``, the right one on what the left gives it.

    Raises:
      ValueError: ``cfg.factors`` needs other statistics than ``xtx``.
    """
    if cfg.factors is None:
        return low_rank(left.astype(cfg.dtype), right.astype(cfg.dtype))
    if statistic_for(cfg.factors) is None:
        return low_rank(leaf_rule(left, cfg.factors, None, None)[0], leaf_rule(right, cfg.factors, None, None)[0])
    h = second_moment(stats, cfg)
    outer = leaf_rule(left, cfg.factors, stats, None)[0]
    thin = dense(outer)
    inner = jnp.matmul(thin.T, jnp.matmul(h, thin, precision="highest"), precision="highest")
    seen = dataclasses.replace(Record(), count=None if stats is None else stats.count, xtx=inner)
    return low_rank(outer, leaf_rule(right, cfg.factors, seen, None)[0])
