"""The plan of fewest bytes whose errors add up to no more than those of the uniform plan."""

from typing import NamedTuple

import numpy as np

from compressjax.distributed.l_greco.config import LGreco, Plan
from compressjax.distributed.l_greco.units import Unit, checked_plan, size_table, uniform_plan
from compressjax.numerics.knapsack import multiple_choice_knapsack


class Adaptation(NamedTuple):
    """A plan made anew.

    Attributes:
      plan: the levels.
      cost: bytes of the plan's messages (or the unit of the cost table), without the factor of the workers.
      uniform_cost: the same of the plan it was measured against.
      error: sum of the plan's errors.
      budget: what it had to stay under.
      skipped: gradients were not finite, so the old plan stays.
    """

    plan: Plan
    cost: int
    uniform_cost: int
    error: float
    budget: float
    skipped: bool


def dp_allocate(
    errors: np.ndarray, sizes: np.ndarray, budget: float, bins: int
) -> tuple[np.ndarray, int, float] | None:
    """Levels of least total size whose total error stays within a budget.

    Errors are cut into ``bins`` and rounded up, so the true error never exceeds the budget.

    Args:
      errors: ``[units, levels]`` >= 0; inf rules a level out.
      sizes: integers ``[units, levels]``.
      budget: largest total error.
      bins: resolution.

    Returns:
      Levels ``[units]``, total size, total error; None when no choice fits.

    Raises:
      ValueError: fewer bins than units, or a negative budget.
    """
    errors = np.asarray(errors, np.float64)
    if bins < len(errors):
        raise ValueError(f"bins must be at least the number of units {len(errors)}, got {bins}")
    if not budget >= 0:
        raise ValueError(f"budget must be >= 0, got {budget}")
    share = np.where(errors > budget, 2.0, errors / budget) if budget > 0 else np.where(errors > 0, 2.0, 0.0)
    # A hair under the exact quotient: an error that is a whole number of bins is not pushed into the next one.
    weights = np.ceil(share * bins * (1 - 1e-12)).astype(np.int64)
    found = multiple_choice_knapsack(np.asarray(sizes, np.int64), np.minimum(weights, bins + 1), bins)
    if found is None:
        return None
    at = np.arange(len(errors)), found.levels
    return found.levels, int(found.value), float(errors[at].sum())


def adapt(
    cfg: LGreco,
    units: tuple[Unit, ...],
    errors: np.ndarray,
    plan: Plan,
    *,
    defaults: Plan | None = None,
    costs: np.ndarray | None = None,
) -> Adaptation:
    """A new plan from a table of errors; on the host, and alike on all workers if their tables are.

    The plan is compared with the defaults', whose exact error the rounded budget may miss by a bin per unit, and the
    cheaper one is kept.

    Args:
      cfg: as the table was made with.
      units: of the gradients.
      errors: ``[units, levels]``.
      plan: the present one, kept when the table is not finite.
      defaults: level of every unit that sets the budget; None for the base level everywhere. A schedule in time such as
        Accordion speaks here.
      costs: integers ``[units, levels]`` to minimise instead of bytes, such as measured nanoseconds.

    Raises:
      ValueError: shapes that do not fit, or fewer bins than units.
    """
    sizes = size_table(units, cfg) if costs is None else np.asarray(costs, np.int64)
    errors = np.asarray(errors, np.float64)
    if errors.shape != (len(units), len(cfg.levels)) or sizes.shape != errors.shape:
        raise ValueError(f"tables must be {(len(units), len(cfg.levels))}, got {errors.shape} and {sizes.shape}")
    start = checked_plan(uniform_plan(units, cfg) if defaults is None else defaults, units, cfg)
    at = np.arange(len(units)), np.asarray(start, np.int64)
    uniform_cost, budget = int(sizes[at].sum()), cfg.alpha * float(errors[at].sum())
    if np.any(np.isnan(errors)) or not np.isfinite(budget):
        return Adaptation(plan, uniform_cost, uniform_cost, float("nan"), float("nan"), True)
    found = dp_allocate(errors, sizes, budget, cfg.bins)
    uniform_fits = float(errors[at].sum()) <= budget
    if found is None or (uniform_fits and uniform_cost <= found[1]):
        return Adaptation(start, uniform_cost, uniform_cost, float(errors[at].sum()), budget, False)
    levels, cost, error = found
    return Adaptation(tuple(int(level) for level in levels), cost, uniform_cost, error, budget, False)


def accordion_levels(
    before: np.ndarray, now: np.ndarray, units: tuple[Unit, ...], cfg: LGreco, *, low: int, high: int, eta: float = 0.5
) -> Plan:
    """Default levels by Accordion: more bytes where the gradient's norm changes fast, fewer where it does not.

        level_l = high  if | |g_l| before - |g_l| now | >= eta |g_l| before,  else low

    Given to `adapt` as ``defaults``, it makes L-GreCo spread what the schedule in time allows.

    Paper: Agarwal et al., 2021, arXiv 2010.16248.

    Args:
      before, now: norms ``[units]`` at the last adaptation and at this one.
      units: of the gradients.
      cfg: whose levels are meant.
      low, high: level indices, ``low <= high``.
      eta: threshold of the relative change.

    Raises:
      ValueError: levels out of order or range.
    """
    if not 0 <= low <= high < len(cfg.levels):
        raise ValueError(f"low and high must be level indices with low <= high < {len(cfg.levels)}, got {low}, {high}")
    critical = np.abs(np.asarray(before) - np.asarray(now)) >= eta * np.asarray(before)
    plans = uniform_plan(units, cfg, low), uniform_plan(units, cfg, high)
    return tuple(plans[int(fast)][i] for i, fast in enumerate(critical))
