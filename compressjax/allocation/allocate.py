"""The verb ``allocate``: one database of levels, one budget, any search."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from compressjax.allocation.database import LevelDatabase
from compressjax.allocation.evolve import EvoPress, Generation, best_start, evolve
from compressjax.allocation.fitness import TextFitness
from compressjax.allocation.knapsack import Allocation, allocation_of, knapsack_dp, uniform
from compressjax.allocation.mutation import exchange
from compressjax.allocation.searches import exhaustive, greedy
from compressjax.dispatch import verb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """The highest level that all items can have within the budget."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """One step down at a time, from the highest levels, by error per bit; see ``greedy``.

    Attributes:
      tokens: how many tokens a fitness judges each step on.
      seed: of the draw of those tokens.
    """

    tokens: int = 2048
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnapsackDP:
    """The least sum of the database's errors, by dynamic programming; see ``knapsack_dp``.

    Attributes:
      bins: resolution of the budget.
    """

    bins: int = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeighbourDP:
    """`KnapsackDP` between two levels: the highest that all items can have, and the next.

    Errors of layers add up best where they are small, so a choice that keeps every layer near the others trusts them
    with less than one that may send a layer to the lowest level.

    Attributes:
      bins: resolution of the budget.
    """

    bins: int = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
    """The choice of several searches over the database's errors that the whole network likes best.

    Attributes:
      searches: configs of searches that need no fitness.
      tokens: how many tokens each choice is judged on.
      seed: of the draw of those tokens.
    """

    searches: tuple[Any, ...] = (Uniform(), Greedy(), KnapsackDP(), NeighbourDP())
    tokens: int = 4096
    seed: int = 0

    def __post_init__(self):
        if not self.searches:
            raise ValueError("BestOf.searches must name at least one search")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhaustive:
    """Every choice, for few items: an oracle.

    Attributes:
      tokens, seed: as for `Greedy`.
      most: choices at most.
    """

    tokens: int = 2048
    seed: int = 0
    most: int = 200_000


@verb(on="cfg")
def allocate(
    db: LevelDatabase,
    budget: int,
    cfg: Any,
    fitness: TextFitness | None = None,
    *,
    start: ArrayLike | None = None,
    progress: Callable[[Generation], None] | None = None,
) -> Allocation:
    """The level of every item, within a budget.

    Args:
      db: levels and their exact costs.
      budget: largest total cost, in the database's unit.
      cfg: a search: `Uniform`, `Greedy`, `KnapsackDP`, `NeighbourDP`, `BestOf`, `EvoPress`, `Exhaustive`.
      fitness: what judges a choice by the whole network; EvoPress and BestOf need one, Greedy and Exhaustive take the
        sum of the database's errors without. Anything with its two methods will do.
      start: a choice ``[N]`` from which EvoPress goes on, such as the last of an interrupted search.
      progress: called after each generation of EvoPress; what it raises ends the search.

    Returns:
      The choice, its exact cost and the sum of its errors.

    Raises:
      ValueError: no choice fits the budget, or the search lacks errors or a fitness.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@allocate.register(Uniform)
def _uniform(db, budget, cfg, fitness=None, *, start=None, progress=None):
    fitting = [level for level in range(len(db.levels)) if uniform(db, level).cost <= budget]
    if not fitting:
        raise ValueError(f"the lowest levels cost {uniform(db, 0).cost}, the budget is {budget}")
    return uniform(db, max(fitting))


@allocate.register(KnapsackDP)
def _knapsack(db, budget, cfg, fitness=None, *, start=None, progress=None):
    return knapsack_dp(db, budget, bins=cfg.bins)


@allocate.register(NeighbourDP)
def _neighbours(db, budget, cfg, fitness=None, *, start=None, progress=None):
    if db.error is None:
        raise ValueError("NeighbourDP needs a LevelDatabase with errors")
    every = allocate(db, budget, Uniform())
    lower = int(every.state[0])
    if lower == len(db.levels) - 1 or every.cost == budget:
        return every
    # Of what the lower level leaves, so that rounding to bins cannot make the lower level itself too dear.
    pair = slice(lower, lower + 2)
    steps = db.cost[:, pair] - db.cost[:, lower, None]
    near = LevelDatabase(names=db.names, levels=db.levels[pair], cost=steps, error=db.error[:, pair])
    return allocation_of(db, lower + knapsack_dp(near, budget - every.cost, bins=cfg.bins).state)


@allocate.register(BestOf)
def _best_of(db, budget, cfg, fitness=None, *, start=None, progress=None):
    if fitness is None:
        raise ValueError("BestOf judges choices by the whole network: pass a fitness")
    batch = fitness.draw(cfg.tokens, np.random.default_rng(cfg.seed))
    found = [allocate(db, budget, search) for search in cfg.searches]
    return min(found, key=lambda choice: fitness(choice.state, batch))


@allocate.register(Greedy)
def _greedy(db, budget, cfg, fitness=None, *, start=None, progress=None):
    return allocation_of(db, greedy(db, budget, _judge(cfg, fitness)))


@allocate.register(Exhaustive)
def _exhaustive(db, budget, cfg, fitness=None, *, start=None, progress=None):
    return allocation_of(db, exhaustive(db, budget, _judge(cfg, fitness) or db.total_error, cfg.most))


@allocate.register(EvoPress)
def _evolve(db, budget, cfg, fitness=None, *, start=None, progress=None):
    if fitness is None:
        raise ValueError("EvoPress judges choices by the whole network: pass a fitness")
    first = best_start(db, budget, fitness, fitness.draw, cfg) if start is None else np.asarray(start, np.int64)
    state = first
    for generation in evolve(
        db,
        budget,
        fitness,
        fitness.draw,
        lambda rng: exchange(db, budget, rng, group=cfg.group, most=cfg.max_flips),
        cfg,
        start=first,
    ):
        state = generation.state
        if progress is not None:
            progress(generation)
    return allocation_of(db, state)


def _judge(cfg, fitness):
    """A fitness on one fixed batch, or None."""
    if fitness is None:
        return None
    batch = fitness.draw(cfg.tokens, np.random.default_rng(cfg.seed))
    return lambda state: fitness(state, batch)
