"""Compiling a JAX function for a GPU that is described and not present."""

import functools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.sharding import SingleDeviceSharding

from pallas_kernels.proof import mosaic_dump, toolchain, triton_record
from pallas_kernels.proof.launch import Launch
from pallas_kernels.proof.targets import Target, described_device


class Program(NamedTuple):
    """A compiled function: JAX's handle, its HLO, the PTX of its kernels, their launches, and the seconds it took."""

    compiled: Any
    hlo: str
    ptx: tuple[str, ...]
    launches: dict[str, Launch]
    seconds: float


@functools.cache
def _device(target: Target):
    return described_device(target)


@contextmanager
def compiling_for(target: Target) -> Iterator[Any]:
    """Context in which tracing and lowering take ``target`` as the default device, as Pallas wants; yields it."""
    with mock.patch.dict(os.environ, toolchain.environment(dict(os.environ))):
        device = _device(target)
        with jax.default_device(device):
            yield device


def compile_for(fn: Callable[..., Any], args: Any, target: Target, *, donate: tuple[int, ...] = ()) -> Program:
    """Compiles ``fn`` for ``target``.

    Args:
      fn: a function of arrays.
      args: its arguments as a tuple of trees of ``jax.ShapeDtypeStruct``.
      target: the GPU to compile for.
      donate: arguments whose buffers the results may take.

    Raises:
      RuntimeError: when the packages that compiling needs are not installed.
    """
    lack = toolchain.missing()
    if lack is not None:
        raise RuntimeError(lack)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, compiling_for(target) as device:
        sharding = SingleDeviceSharding(device)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
        traced = jax.jit(fn, donate_argnums=donate).trace(*shapes)
        with triton_record.recording() as in_triton:
            lowered = traced.lower(lowering_platforms=("cuda",))
        # Dumping the PTX only: any wider pattern makes every later compilation many times slower.
        with mosaic_dump.dumping(folder) as dump:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"})
        files = sorted(Path(folder).iterdir())
        ptx = tuple(f.read_text(encoding="utf-8") for f in files if f.suffix == ".ptx")
        thunks = "\n".join(f.read_text(encoding="utf-8") for f in files if f.name.endswith("thunk_sequence.txt"))
        hlo = str(compiled.as_text())
        mosaic_ptx, mosaic_launches = mosaic_dump.kernels(dump, hlo)
    launches = parse_launches(thunks) | mosaic_launches | {name: launch for name, (_, launch) in in_triton.items()}
    ptx += mosaic_ptx + tuple(text for text, _ in in_triton.values())
    return Program(compiled, hlo, ptx, launches, time.perf_counter() - start)


_THUNK = re.compile(
    r"(?P<name>\S+) grid: \[(?P<grid>[\d, ]+)\] threads: \[(?P<threads>[\d, ]+)\].*?shared_memory: (?P<shared>\d+)"
)


def parse_launches(thunks: str) -> dict[str, Launch]:
    """Launches by kernel name from the text in which XLA lists what it runs."""
    found = {}
    for thunk in _THUNK.finditer(thunks):
        grid = tuple(int(extent) for extent in thunk["grid"].split(","))
        threads = 1
        for extent in thunk["threads"].split(","):
            threads *= int(extent)
        found[thunk["name"]] = Launch(grid, threads, int(thunk["shared"]))
    return found
