"""Equal shares of a sparse matrix's groups for the programs of a kernel, whatever its rows hold (task-centric)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tasks(NamedTuple):
    """One entry per task; task ``t`` works on stored groups ``start[t]:stop[t]``.

    A row (an output) that lies wholly inside a task is written by it. The first row is shared when it began in an
    earlier task, the last when it goes on in a later one; the sums of shared rows go to a carry, which a second small
    pass adds in the order of tasks, so the result needs no atomics and repeats bit for bit.

    Attributes:
      start, stop: int32 ``[tasks]``; equal for a task without work.
      row: int32 ``[tasks]``, the row of the first group.
      rows: int32 ``[tasks]``, rows from there to that of the last group, empty ones between them included.
      shares_first, shares_last: bool ``[tasks]``.
    """

    start: jax.Array
    stop: jax.Array
    row: jax.Array
    rows: jax.Array
    shares_first: jax.Array
    shares_last: jax.Array


def plan_tasks(row_ptr: jax.Array, tasks: int, total: int, quantum: int = 1) -> Tasks:
    """Cuts ``total`` stored groups into ``tasks`` runs of equal length, the last ones shorter.

    Stream-K (Osama et al., 2023, arXiv 2301.03598) over stored groups: loads differ by at most one run, against the
    longest row of a schedule that gives each program its own rows.

    Args:
      row_ptr: int ``[rows + 1]``, as in ``GroupSparse``.
      tasks: number of tasks, >= 1.
      total: number of stored groups, ``row_ptr[-1]``; static, as it is the length of the leaf's arrays.
      quantum: runs are multiples of this many groups.

    Raises:
      ValueError: for numbers below 1 or a ``row_ptr`` that is not a vector of at least two entries.
    """
    for name, value in (("tasks", tasks), ("total", total), ("quantum", quantum)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if row_ptr.ndim != 1 or row_ptr.shape[0] < 2:
        raise ValueError(f"row_ptr must be [rows + 1] with at least one row, got shape {row_ptr.shape}")
    row_ptr = row_ptr.astype(jnp.int32)
    run = -(-total // (tasks * quantum)) * quantum
    number = jnp.arange(tasks, dtype=jnp.int32)
    start, stop = jnp.minimum(number * run, total), jnp.minimum((number + 1) * run, total)
    works = stop > start

    def row_of(group):
        return jnp.searchsorted(row_ptr, group, side="right").astype(jnp.int32) - 1

    first, last = row_of(jnp.minimum(start, total - 1)), row_of(jnp.maximum(stop - 1, 0))
    return Tasks(
        start=start,
        stop=stop,
        row=first,
        rows=jnp.where(works, last - first + 1, 0),
        shares_first=works & (row_ptr[first] < start),
        shares_last=works & (row_ptr[last + 1] > stop),
    )
