"""Giving memory that has been freed back to the operating system."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


# Of glibc's malloc.h: from this size on, a block is a mapping of its own. The value stops glibc from raising it by
# itself, up to 32 MB, as soon as a large block is freed.
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
# Heaps that threads may have each; the compiler's threads would otherwise leave several that are mostly empty.
_M_ARENA_MAX = -8
_ARENAS = 1


def _from_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


@functools.cache
def _trim() -> Callable[..., int] | None:
    return _from_libc("malloc_trim")


def map_large_arrays() -> None:
    """Makes arrays of 1 MiB and more leave the process the moment they are freed; nothing where it is not glibc.

    For programs, to be called once at their start: it holds for the whole process. Without it arrays of tens of
    megabytes share the heap with small ones that outlive them, and a model compressed in memory takes about 100 MB
    more at its peak.
    """
    set_option = _from_libc("mallopt")
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        set_option(_M_ARENA_MAX, _ARENAS)


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
