"""What kernels in Pallas' Mosaic GPU backend share: the launch for Hopper, shared memory, how results leave it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

STORED_ROWS = 64
"""Rows of the result that a warpgroup stores at a time."""
LOADER_REGISTERS = 40
"""Registers of a thread of the warpgroup that loads."""


def tiled(columns: int, bits: int) -> tuple[Any, Any]:
    """How a block of ``columns`` numbers of ``bits`` bits stands in shared memory for a product."""
    swizzle = plgpu.find_swizzle(columns * bits)
    return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)


def launch(
    kernel: Callable[..., None],
    *,
    out: jax.ShapeDtypeStruct,
    scratch: Sequence[Any],
    grid: tuple[int, int],
    warpgroups: int,
    name: str,
    interpret: bool,
) -> Callable[..., jax.Array]:
    """A function of whole arrays that runs ``kernel(*inputs, output, *scratch)`` on Hopper.

    Args:
      kernel: asks for its place with the axes "m", "n" and "worker".
      out: type of the result.
      scratch: shared memory.
      grid: blocks of rows and of columns of the result.
      warpgroups: that multiply; one more loads.
      name: of the kernel.
      interpret: run by the host.
    """
    return plgpu.kernel(
        kernel,
        out_type=out,
        scratch_types=scratch,
        grid=grid,
        grid_names=("m", "n"),
        num_threads=warpgroups + 1,
        thread_name="worker",
        kernel_name=name,
        interpret=_host() if interpret else False,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )


def store_block(
    write: Callable[[Any, slice], None], stored: Any, out: Any, *, rows: int, first: Any, columns: Any
) -> None:
    """Sends a warpgroup's block of the result to device memory by way of shared memory.

    Args:
      write: ``(reference, rows)``, puts these rows of the block into the reference.
      stored: shared memory ``[STORED_ROWS, columns]`` of this warpgroup.
      out: the result.
      rows: of the block.
      first: row of the result that the block starts at.
      columns: of the result that the block holds.
    """
    for start in range(0, rows, STORED_ROWS):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        write(stored, slice(start, start + STORED_ROWS))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(stored, out.at[pl.ds(first + start, STORED_ROWS), columns])
    plgpu.wait_smem_to_gmem(0)


@functools.cache
def _host():
    """What makes the host run a kernel, and raise for a race where it can tell."""
    exported = getattr(plgpu, "InterpretGPUParams", None)
    if exported is not None:
        return exported(detect_races=True)
    # jax 0.10 does not export it, and its search for races finds none.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
