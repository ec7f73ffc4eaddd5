"""Searches that need no evolution: everything, for an oracle, and one step at a time."""

import itertools
from collections.abc import Callable

import numpy as np

from compressjax.allocation.database import LevelDatabase


def exhaustive(
    db: LevelDatabase, budget: int, fitness: Callable[[np.ndarray], float], most: int = 200_000
) -> np.ndarray:
    """The best choice within a budget, by trying all of them.

    Raises:
      ValueError: more than ``most`` choices, or none fits.
    """
    count = len(db.levels) ** len(db.names)
    if count > most:
        raise ValueError(f"{count} choices are more than {most}")
    best, least = None, np.inf
    for levels in itertools.product(range(len(db.levels)), repeat=len(db.names)):
        state = np.asarray(levels, np.int64)
        if db.total_cost(state) <= budget and (value := fitness(state)) < least:
            best, least = state, value
    if best is None:
        raise ValueError(f"no choice of levels fits a budget of {budget}")
    return best


def greedy(db: LevelDatabase, budget: int, fitness: Callable[[np.ndarray], float] | None = None) -> np.ndarray:
    """From the highest levels down, always the step that loses least per cost it frees.

    Args:
      db: levels in rising cost; with errors where ``fitness`` is None.
      budget: largest total cost.
      fitness: ``state -> number``, lower is better; None for the sum of the database's errors.

    Raises:
      ValueError: even the lowest levels cost more, or there is nothing to judge by.
    """
    if fitness is None and db.error is None:
        raise ValueError("greedy needs a fitness, or a LevelDatabase with errors")
    judge = db.total_error if fitness is None else fitness
    state = np.full(len(db.names), len(db.levels) - 1, np.int64)
    while db.total_cost(state) > budget:
        now, steps = judge(state), []
        for i in np.flatnonzero(state > 0):
            lower = state.copy()
            lower[i] -= 1
            freed = db.total_cost(state) - db.total_cost(lower)
            steps.append(((judge(lower) - now) / max(freed, 1), i))
        if not steps:
            raise ValueError(f"the lowest levels cost {db.total_cost(state)}, the budget is {budget}")
        state[min(steps)[1]] -= 1
    return state
