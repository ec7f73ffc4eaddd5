"""Changes of a choice of levels that keep its exact cost within a budget (EvoPress, arXiv 2410.14649)."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from compressjax.allocation.database import LevelDatabase

Group = Literal["size", "name", "none"]


def flips(rng: np.random.Generator, most: int) -> int:
    """How many level switches a mutation makes: the lesser of two uniform draws from ``1..most``.

    With three, one, two and three switches come in 5, 3 and 1 of 9 cases.
    """
    return int(min(rng.integers(1, most + 1), rng.integers(1, most + 1)))


def groups_of(db: LevelDatabase, group: Group) -> list[np.ndarray]:
    """Items between which levels are exchanged: of equal steps in cost, of the same last name, or all.

    What an item costs at its lowest level does not matter: an exchange keeps the total where steps are equal.

    Raises:
      ValueError: "name" puts items of unequal steps together, so that an exchange would change the total.
    """
    steps = np.diff(db.cost, axis=1)
    if group == "none":
        return [np.arange(len(db.names))]
    if group == "size":
        keys = [tuple(row) for row in steps.tolist()]
    else:
        keys = [name.rpartition("/")[2] if "/" in name else name for name in db.names]
    found = [np.asarray([i for i, key in enumerate(keys) if key == one]) for one in dict.fromkeys(keys)]
    if group == "name":
        for members in found:
            if np.any(steps[members] != steps[members[0]]):
                raise ValueError(
                    f"{[db.names[i] for i in members]} share a name but not their steps in cost: group by 'size'"
                )
    return found


def exchange(
    db: LevelDatabase, budget: int, rng: np.random.Generator, *, group: Group, most: int
) -> Callable[[np.ndarray], np.ndarray | None]:
    """A mutation that moves some items one level up and others of their group down to pay for it.

    Levels are ordered by cost, level 0 the cheapest. Inside a group of equal costs and equal steps one goes up and one
    down, and the total stays what it was; where steps differ, more go down until the budget is kept, and what a budget
    leaves over is spent. With "none" items of any size are raised, and random ones lowered until the budget is kept
    again; a result that changes more than ten levels, or spends less than four fifths of what the lowered ones freed,
    is rejected, as is one that is the parent.

    Returns:
      ``state -> new state``, or None where the draw was rejected.
    """
    members = groups_of(db, group)
    share = np.asarray([len(m) for m in members], float) / len(db.names)
    top = len(db.levels) - 1

    def within_groups(state):
        new = state.copy()
        for _ in range(flips(rng, most)):
            own = members[rng.choice(len(members), p=share)]
            upper = own[new[own] < top]
            if not len(upper):
                continue
            up = rng.choice(upper)
            new[up] += 1
            while db.total_cost(new) > budget:
                lower = own[(new[own] > 0) & (own != up)]
                if not len(lower):
                    return None
                new[rng.choice(lower)] -= 1
        return None if np.array_equal(new, state) else new

    def anywhere(state):
        new = state.copy()
        for _ in range(flips(rng, most)):
            upper = np.flatnonzero(new < top)
            if len(upper):
                new[rng.choice(upper)] += 1
        while db.total_cost(new) > budget:
            lower = np.flatnonzero(new > 0)
            if not len(lower):
                return None
            new[rng.choice(lower)] -= 1
        moved = db.cost[np.arange(len(new)), new] - db.cost[np.arange(len(new)), state]
        added, removed = int(moved[moved > 0].sum()), int(-moved[moved < 0].sum())
        if not added or np.abs(new - state).sum() > 10 or (removed and added < 0.8 * removed):
            return None
        return new

    return anywhere if group == "none" else within_groups


def swap_dropped(
    kinds: np.ndarray, rng: np.random.Generator, *, most: int, legal: Callable[[np.ndarray], bool] | None = None
) -> Callable[[np.ndarray], np.ndarray | None]:
    """A mutation for depth: a dropped part (level 0) comes back and a kept one (level 1) of its kind goes.

    Args:
      kinds: int ``[N]``, what each part is, such as 0 for attention and 1 for an MLP.
      rng: draws.
      most: swaps at most.
      legal: says whether a choice is allowed; None for all.
    """
    every = np.unique(kinds)

    def mutate(state):
        new = state.copy()
        for _ in range(flips(rng, most)):
            own = np.flatnonzero(kinds == rng.choice(every))
            kept, gone = own[new[own] == 1], own[new[own] == 0]
            if not len(kept) or not len(gone):
                continue
            out, back = rng.choice(kept), rng.choice(gone)
            new[out], new[back] = 0, 1
        if np.array_equal(new, state) or (legal is not None and not legal(new)):
            return None
        return new

    return mutate
