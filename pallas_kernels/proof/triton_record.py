"""PTX and launches of kernels that jax-triton compiles while a program is lowered; XLA gets them as opaque calls."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from pallas_kernels.proof.launch import Launch


@contextmanager
def recording() -> Iterator[dict[str, tuple[str, Launch]]]:
    """Context in which jax-triton's kernels are compiled afresh; yields their PTX and launch by name as they come."""
    found: dict[str, tuple[str, Launch]] = {}
    if importlib.util.find_spec("jax_triton") is None:
        yield found
        return
    from jax_triton import triton_lib

    library = triton_lib.triton_kernel_call_lib
    make_kernel, make_call = library.TritonKernel, library.TritonKernelCall
    made = {}

    def kernel(name, warps, clusters, shared, ptx, *rest):
        result = make_kernel(name, warps, clusters, shared, ptx, *rest)
        made[id(result)] = result, name, 32 * warps, shared, ptx
        return result

    def call(kernel, *rest):
        _, name, threads, shared, ptx = made[id(kernel)]
        found[name] = ptx, Launch(tuple(rest[:3]), threads, shared)
        return make_call(kernel, *rest)

    with (
        mock.patch.object(library, "TritonKernel", kernel),
        mock.patch.object(library, "TritonKernelCall", call),
        mock.patch.dict(triton_lib._COMPILED_KERNEL_CACHE, clear=True),
    ):
        yield found
