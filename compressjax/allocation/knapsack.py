"""Levels by dynamic programming over an additive table: what L-GreCo and the baseline of EvoPress solve.

The budgeted quantity is cut into bins and rounded up, so a choice never exceeds the true budget. With errors as floats
that costs at most one bin per item; costs whose common divisor makes them small integers are not rounded at all.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from compressjax.allocation.database import LevelDatabase
from compressjax.numerics.knapsack import multiple_choice_knapsack


class Allocation(NamedTuple):
    """A choice of levels.

    Attributes:
      state: int64 ``[N]``, level indices.
      cost: exact total.
      error: total, NaN where the database holds none.
    """

    state: np.ndarray
    cost: int
    error: float


def uniform(db: LevelDatabase, level: int) -> Allocation:
    """The same level for every item."""
    return allocation_of(db, np.full(len(db.names), level, np.int64))


def knapsack_dp(
    db: LevelDatabase, budget: float, *, sense: Literal["min_cost", "min_error"] = "min_error", bins: int = 10_000
) -> Allocation:
    """The best choice within a budget.

    Args:
      db: with errors.
      budget: largest total cost ("min_error") or largest total error ("min_cost").
      sense: what is minimised.
      bins: resolution of the budget.

    Returns:
      The choice; its true cost, or error, is within the budget.

    Raises:
      ValueError: no errors, fewer bins than items, a budget that is not positive, or none of the choices fits.
    """
    if db.error is None:
        raise ValueError("knapsack_dp needs a LevelDatabase with errors")
    if sense not in ("min_cost", "min_error"):
        raise ValueError(f"sense must be 'min_cost' or 'min_error', got {sense!r}")
    if not budget > 0 or not math.isfinite(budget):
        raise ValueError(f"budget must be positive and finite, got {budget}")
    if bins < len(db.names):
        raise ValueError(f"bins must be at least the number of items {len(db.names)}, got {bins}")
    lives = np.isfinite(db.error)
    if sense == "min_cost":
        values, weights, capacity = db.cost, binned(db.error, budget, bins), bins
    else:
        values = np.where(lives, db.error, 0.0)
        weights, capacity = _cost_bins(db.cost, int(budget), bins)
    weights = np.where(lives, weights, capacity + 1)
    found = multiple_choice_knapsack(values, weights, capacity)
    if found is None:
        raise ValueError(f"no choice of levels fits a budget of {budget:.6g} ({sense})")
    return allocation_of(db, found.levels)


def binned(amounts: np.ndarray, budget: float, bins: int) -> np.ndarray:
    """Amounts in bins of ``budget / bins``, rounded up; what exceeds the budget is ``bins + 1``."""
    share = np.ceil(np.minimum(amounts / budget, 2.0) * bins * (1 - 1e-12))
    return np.where(share > bins, bins + 1, share).astype(np.int64)


def _cost_bins(cost: np.ndarray, budget: int, bins: int) -> tuple[np.ndarray, int]:
    unit = int(np.gcd.reduce(cost, axis=None)) or 1
    if budget // unit <= bins:
        return cost // unit, budget // unit
    return binned(cost.astype(np.float64), float(budget), bins), bins


def allocation_of(db: LevelDatabase, state: np.ndarray) -> Allocation:
    """A choice with its exact cost and the sum of its errors."""
    error = math.nan if db.error is None else db.total_error(state)
    return Allocation(state, db.total_cost(state), error)
