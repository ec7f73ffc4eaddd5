"""How a kernel is launched."""

from typing import NamedTuple


class Launch(NamedTuple):
    """Grid, threads of a block and dynamic shared memory of a kernel."""

    grid: tuple[int, ...]
    threads: int
    dynamic_shared: int
