"""Evolution over levels, judged by the whole network (EvoPress: Sieberling et al., 2024, arXiv 2410.14649).

One parent, many children by mutations that keep the budget, and a selection in stages: all children on few tokens, the
survivors on more, the last few and the parent on the most. Every candidate of a stage sees the same tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from compressjax.allocation.database import LevelDatabase, checked_state
from compressjax.allocation.mutation import Group

Fitness = Callable[[np.ndarray, Any], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvoPress:
    """How long and how widely to search.

    Attributes:
      generations: rounds of mutation and selection.
      offspring: children of a round.
      survivors: how many each stage keeps, falling, the last of them 1.
      tokens: how many tokens each stage judges on.
      tries: draws for one child before the round goes on with fewer; a draw that was rejected, or that repeats the
        parent or a sibling, is drawn again.
      group: between which items a level is exchanged, see ``mutation.exchange``.
      max_flips: level switches of a mutation at most.
      starts: random choices of which the best begins.
      start_tokens: what those are judged on; None for as many tokens as the first stage's.
      seed: of all draws.
    """

    generations: int = 150
    offspring: int = 128
    survivors: tuple[int, ...] = (16, 4, 1)
    tokens: tuple[int, ...] = (2048, 16384, 131072)
    tries: int = 100
    group: Group = "size"
    max_flips: int = 3
    starts: int = 1
    start_tokens: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.group not in ("size", "name", "none"):
            raise ValueError(f"EvoPress.group must be 'size', 'name' or 'none', got {self.group!r}")
        if self.start_tokens is not None and self.start_tokens < 1:
            raise ValueError(f"EvoPress.start_tokens must be >= 1 or None, got {self.start_tokens}")
        for field in ("generations", "offspring", "tries", "max_flips", "starts"):
            if getattr(self, field) < 1:
                raise ValueError(f"EvoPress.{field} must be >= 1, got {getattr(self, field)}")
        kept = self.survivors
        if len(kept) != len(self.tokens) or not kept:
            raise ValueError(f"EvoPress.survivors {kept} and tokens {self.tokens} must be as many, at least one")
        if kept[-1] != 1 or any(a < b for a, b in zip(kept, kept[1:], strict=False)) or kept[0] > self.offspring:
            raise ValueError(f"EvoPress.survivors must fall to 1 from at most offspring={self.offspring}, got {kept}")
        if min(self.tokens) < 1:
            raise ValueError(f"EvoPress.tokens must be >= 1, got {self.tokens}")


class Generation(NamedTuple):
    """Where a search stands.

    Attributes:
      number: generations done.
      state: int64 ``[N]``, the best choice, from which the next round starts.
      fitness: what the last stage gave it; lower is better. Stages draw new tokens, so it may rise.
      judged: tokens that candidates were run on so far.
    """

    number: int
    state: np.ndarray
    fitness: float
    judged: int


def evolve(
    db: LevelDatabase,
    budget: int,
    fitness: Fitness,
    draw: Callable[[int, np.random.Generator], Any],
    mutate: Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray | None]],
    cfg: EvoPress = EvoPress(),
    *,
    start: np.ndarray,
) -> Iterator[Generation]:
    """Searches; yields after every generation, so that a caller may show progress, stop at any time, or keep the state.

    Args:
      db: levels and exact costs.
      budget: largest total cost.
      fitness: ``(state, batch) -> number``, lower is better.
      draw: ``(tokens, rng) -> batch`` of that many tokens.
      mutate: ``rng -> (state -> state or None)``, from `allocation.mutation`.
      cfg: the search.
      start: a choice within the budget.

    Ends early where the parent has no other choice within reach.

    Raises:
      ValueError: a start over the budget, or a mutation that leaves it.
    """
    parent = checked_state(db, start)
    if db.total_cost(parent) > budget:
        raise ValueError(f"the start costs {db.total_cost(parent)}, the budget is {budget}")
    rng = np.random.default_rng(cfg.seed)
    change = mutate(rng)
    judged = 0
    for number in range(1, cfg.generations + 1):
        pool = _children(db, parent, budget, change, cfg)
        if not pool:
            return
        score = np.inf
        for stage, (kept, tokens) in enumerate(zip(cfg.survivors, cfg.tokens, strict=True)):
            if stage == len(cfg.survivors) - 1:
                # The parent meets the finalists on the same tokens; judged by the stage, not by how many are kept.
                pool = [*pool, parent]
            batch = draw(tokens, rng)
            scores = np.asarray([fitness(state, batch) for state in pool], float)
            judged += tokens * len(pool)
            order = np.argsort(np.where(np.isnan(scores), np.inf, scores), kind="stable")[:kept]
            pool, score = [pool[i] for i in order], float(scores[order[0]])
        parent = pool[0]
        yield Generation(number, parent, score, judged)


def _children(db, parent, budget, change, cfg):
    seen, found = {parent.tobytes()}, []
    for _ in range(cfg.offspring):
        for _ in range(cfg.tries):
            child = change(parent)
            if child is not None and child.tobytes() not in seen:
                break
        else:
            break
        if db.total_cost(child) > budget:
            raise ValueError(f"a mutation costs {db.total_cost(child)}, the budget is {budget}")
        seen.add(child.tobytes())
        found.append(child)
    return found


def random_within(db: LevelDatabase, budget: int, rng: np.random.Generator, top: int | None = None) -> np.ndarray:
    """A start: all items at one level, random ones lowered until the budget is kept.

    Args:
      db: levels in rising cost.
      budget: largest total cost.
      rng: draws.
      top: the level all start from; None for the highest.

    Raises:
      ValueError: even the lowest levels cost more.
    """
    state = np.full(len(db.names), len(db.levels) - 1 if top is None else top, np.int64)
    if db.total_cost(np.zeros_like(state)) > budget:
        raise ValueError(f"the lowest levels cost {db.total_cost(np.zeros_like(state))}, the budget is {budget}")
    while db.total_cost(state) > budget:
        state[rng.choice(np.flatnonzero(state > 0))] -= 1
    return state


def best_start(
    db: LevelDatabase,
    budget: int,
    fitness: Fitness,
    draw: Callable[[int, np.random.Generator], Any],
    cfg: EvoPress,
) -> np.ndarray:
    """The best of ``cfg.starts`` random choices; a uniform one where its level meets the budget exactly.

    Random ones start from the lowest level that all items together cannot have within the budget.

    Raises:
      ValueError: even the lowest levels cost more than the budget.
    """
    costs = db.cost.sum(axis=0)
    exact = np.flatnonzero(costs == budget)
    if len(exact):
        return np.full(len(db.names), exact[0], np.int64)
    over = np.flatnonzero(costs > budget)
    rng = np.random.default_rng(cfg.seed)
    found = [random_within(db, budget, rng, int(over[0]) if len(over) else None) for _ in range(cfg.starts)]
    if len(found) == 1:
        return found[0]
    batch = draw(cfg.start_tokens or cfg.tokens[0], rng)
    scores = np.asarray([fitness(state, batch) for state in found], float)
    return found[int(np.argmin(np.where(np.isnan(scores), np.inf, scores)))]
