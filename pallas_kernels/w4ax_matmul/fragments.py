"""Which thread of a warpgroup holds what, on the way from bytes of weights to sums of outputs, for 64 outputs.

An int8 ``wgmma`` wants four inputs of one output in a register, and the bytes of neighbouring outputs stand beside each
other. So a thread reads pairs of outputs, four inputs below each other: two, and the two that are eight further, for in
that order no two threads of a warp meet in a bank of shared memory. Taken apart they are two registers of the operand,
whose rows are eight apart: row ``16 w + 8 r + g`` of it is output ``16 w + 2 g + r``, and the activations stand in the
order of :func:`operand_place`. Sums come back in the same rows; a thread holds both outputs of its pairs, so nothing
moves when they are put in order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from pallas_kernels.hopper_blocks import OUTPUTS
from pallas_kernels.w4ax_matmul.arithmetic import OPERAND_RUN, widened, widening

PAIRS = plgpu.Layout.TILED(plgpu.Tiling(((16, 32), (8, 8), (2, 1))), (-5,), (-3, -4), -1)
"""Of 16-bit words ``[inputs, pairs of outputs]``: a thread has four inputs of one pair."""
OPERAND = plgpu.Layout.WGMMA_8BIT
SUMS = plgpu.Layout.WGMMA
RESULT = plgpu.Layout.TILED(plgpu.Tiling(((8, 64), (8, 16), (2, 2))), (-5,), (-3, -4), -1)
"""Of results ``[rows of activations, outputs]``: a thread has two of each beside each other."""


def operand_registers(pairs: np.ndarray, make: Callable[[Any, int, bool], Any]) -> np.ndarray:
    """Registers of the operand, ``[high, run, r]``, from those of the words, ``[run, 4]``.

    Args:
      pairs: registers of words, 16 inputs a run.
      make: ``(four words, which output of the pair, whether the high nibbles) -> register``.
    """
    found = np.empty((2, len(pairs), 2), object)
    for high, run, lane in np.ndindex(*found.shape):
        found[high, run, lane] = make(pairs[run], lane, bool(high))
    return found


def result_registers(sums: np.ndarray, pair: Callable[[Any, Any, int], Any]) -> np.ndarray:
    """Registers of the result, ``[rows / 8, row of two]``, from those of the sums, ``[rows / 8, r]``.

    Args:
      sums: registers of sums, each with two rows of activations.
      pair: ``(register, register, which row) -> register`` of that row of both.
    """
    found = np.empty(sums.shape, object)
    for nth, row in np.ndindex(*found.shape):
        found[nth, row] = pair(sums[nth, 0], sums[nth, 1], row)
    return found


def operand(pairs: jax.Array) -> jax.Array:
    """The operand int8 ``[64, 2 half]``, 16 times the codes, of words uint16 ``[half, 32]`` in :data:`PAIRS`."""
    shape = (OUTPUTS, 2 * pairs.shape[0])

    def make(four, lane, high):
        word, octets = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(8)
        two = [utils.bitcast(utils.vector_concat(list(four[at : at + 2])), word) for at in (0, 2)]
        made: Any = llvm.inline_asm(word, two, widening(lane, high), "=r,r,r")
        return utils.bitcast(made, ir.VectorType.get((4,), octets))

    @plgpu.inline_mgpu(
        arg_types=(PAIRS,), return_type=plgpu.ShapeDtypeStruct(shape=shape, dtype=jnp.int8, layout=OPERAND)
    )
    def convert(_, words):
        made = operand_registers(words.registers.reshape(-1, 4), make)
        layout = OPERAND.to_mgpu()
        registers = made.reshape(layout.registers_shape(shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=True)

    return convert(pairs)  # pyright: ignore[reportCallIssue] - JAX hands over the context


def operand_by_host(pairs: jax.Array) -> jax.Array:
    """The operand turned and with its outputs in order, int8 ``[2 half, 64]``."""
    half = pairs.shape[0]

    def values(high):
        lanes = jnp.stack([widened(pairs, lane, high) for lane in (0, 1)], axis=-1)
        runs = lanes.reshape(half // OPERAND_RUN, 2, 4, 2, OUTPUTS)
        return jnp.swapaxes(runs, 1, 2).reshape(half, OUTPUTS)

    return jnp.concatenate([values(False), values(True)])


def in_order(sums: jax.Array) -> jax.Array:
    """Sums int32 of the operand's rows ``[64, n]`` as those of the outputs, ``[n, 64]`` in :data:`RESULT`."""
    shape = sums.shape[::-1]

    def pair(first, second, row):
        at = slice(row, row + 1)
        return utils.vector_concat([utils.vector_slice(first, at), utils.vector_slice(second, at)])

    @plgpu.inline_mgpu(
        arg_types=(SUMS,), return_type=plgpu.ShapeDtypeStruct(shape=shape, dtype=jnp.int32, layout=RESULT)
    )
    def convert(_, sums):
        layout = RESULT.to_mgpu()
        registers = result_registers(sums.registers.reshape(-1, 2), pair).reshape(layout.registers_shape(shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=True)

    return convert(sums)  # pyright: ignore[reportCallIssue] - JAX hands over the context
