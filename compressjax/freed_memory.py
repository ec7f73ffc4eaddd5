"""Giving memory that has been freed back to the operating system."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def return_freed_memory() -> None:
    """Asks the C library for what it keeps of freed memory; does nothing where it is not glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


class _Compilations:
    """Counts what jax compiles in this process, from the first time someone asks."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == _COMPILED


@functools.cache
def _compilations() -> _Compilations:
    return _Compilations()


def compile_then_run(f: Any, *args: Any, **kwargs: Any) -> Any:
    """``f(*args, **kwargs)`` of a jitted ``f``, giving back what its compilation took before its arrays are made.

    Compiling one function takes about 100 MB for a moment. glibc keeps most of that for later, in arenas that arrays
    do not come from, so a process that compiles several functions would hold it several times over. Nothing is given
    back where ``f`` was compiled already (jax keeps one executable for both ways of asking for it): memory that is
    given back and taken again has to be mapped anew, page by page.
    """
    compilations = _compilations()
    before = compilations.count
    f.lower(*args, **kwargs).compile()
    if compilations.count > before:
        return_freed_memory()
    return f(*args, **kwargs)
