"""Giving memory that has been freed back to the operating system."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_freed_memory() -> None:
    """Asks the C library for what it keeps of freed memory; does nothing where it is not glibc.

    Compiling one function takes about 100 MB for a moment. glibc keeps most of that for later, in arenas that arrays
    do not come from, so a process that compiles several functions would hold it several times over.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def compile_then_run(f: Any, *args: Any, **kwargs: Any) -> Any:
    """``f(*args, **kwargs)`` of a jitted ``f``, giving back what its compilation took before its arrays are made.

    Costs nothing where ``f`` is compiled already; jax keeps one executable for both ways of asking for it.
    """
    f.lower(*args, **kwargs).compile()
    return_freed_memory()
    return f(*args, **kwargs)
