"""What is known of every item at every level of compression: its exact cost, its error, and what it would become."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LevelDatabase:
    """Items, usually weights or layers, by levels.

    Attributes:
      names: of the items, N of them.
      levels: what the levels mean (bits, ranks, configs), C of them, for all items alike.
      cost: int64 ``[N, C]``, exact: scales, masks and indices included; the unit is the caller's (bits, bytes, ns).
      error: float64 ``[N, C]`` >= 0, or None; ``inf`` marks a level that an item does not have.
      stacked: item -> the item at all its levels, a tree whose arrays lead with ``[C, ...]``, for `assemble`.
      materialize: ``(name, level index) -> the item at that level``, for levels of different structures.
    """

    names: tuple[str, ...]
    levels: tuple[Hashable, ...]
    cost: np.ndarray
    error: np.ndarray | None = None
    stacked: Mapping[str, Any] | None = None
    materialize: Callable[[str, int], Any] | None = None

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "levels", tuple(self.levels))
        shape = (len(self.names), len(self.levels))
        if 0 in shape or len(set(self.names)) != shape[0]:
            raise ValueError("LevelDatabase needs at least one level and one name, and names must differ")
        cost = np.asarray(self.cost)
        if cost.shape != shape or not np.issubdtype(cost.dtype, np.integer) or cost.min() < 0:
            raise ValueError(f"LevelDatabase.cost must be integers >= 0 {shape}, got {cost.dtype} {cost.shape}")
        object.__setattr__(self, "cost", cost.astype(np.int64))
        if self.error is not None:
            error = np.asarray(self.error, np.float64)
            if error.shape != shape or np.any(np.isnan(error)) or error.min() < 0:
                raise ValueError(f"LevelDatabase.error must be numbers >= 0 of shape {shape}, got {error.shape}")
            object.__setattr__(self, "error", error)

    def total_cost(self, state: Sequence[int] | np.ndarray) -> int:
        """Exact cost of a choice ``[N]`` of level indices."""
        return int(self.cost[np.arange(len(self.names)), checked_state(self, state)].sum())

    def total_error(self, state: Sequence[int] | np.ndarray) -> float:
        """Sum of the errors of a choice.

        Raises:
          ValueError: the database holds no errors.
        """
        if self.error is None:
            raise ValueError("this LevelDatabase holds no errors")
        return float(self.error[np.arange(len(self.names)), checked_state(self, state)].sum())


def checked_state(db: LevelDatabase, state: Sequence[int] | np.ndarray) -> np.ndarray:
    """A choice as int64 ``[N]``, if it is one.

    Raises:
      ValueError: another length, or an index that names no level.
    """
    chosen = np.asarray(state)
    if chosen.shape != (len(db.names),) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"state must be {len(db.names)} level indices, got {chosen.dtype} {chosen.shape}")
    if chosen.min() < 0 or chosen.max() >= len(db.levels):
        raise ValueError(f"state must lie in 0..{len(db.levels) - 1}, got {chosen.min()} to {chosen.max()}")
    return chosen.astype(np.int64)


def assemble(db: LevelDatabase, state: Any) -> dict[str, Any]:
    """Every item at its chosen level.

    With ``stacked`` items the choice may be traced, so that one compiled function serves all choices.

    Args:
      db: with ``stacked`` or ``materialize``.
      state: int ``[N]``.

    Raises:
      ValueError: neither is there; or a concrete choice is not one.
    """
    if db.stacked is not None:
        chosen = jnp.asarray(state)
        return {
            name: jax.tree.map(
                lambda a, i=i: jax.lax.dynamic_index_in_dim(a, chosen[i], keepdims=False), db.stacked[name]
            )
            for i, name in enumerate(db.names)
        }
    if db.materialize is None:
        raise ValueError("assemble needs a LevelDatabase with stacked or materialize")
    return {name: db.materialize(name, int(i)) for name, i in zip(db.names, checked_state(db, state), strict=True)}
