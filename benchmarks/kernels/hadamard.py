"""Cases of the rotation, and of the rotation with rounding and packing: every spec."""

import jax.numpy as jnp

from benchmarks.kernels.row import pass_case
from pallas_kernels.hadamard import block_hadamard, hadamard_quantize
from pallas_kernels.hadamard import specs as named
from pallas_kernels.hadamard.config import choose_config
from pallas_kernels.proof.report import Case


def rotation(spec: named.HadamardSpec) -> Case:
    layout = spec.layout
    config = choose_config(spec.m, spec.channels, layout, spec.block, jnp.dtype(spec.dtype))
    x = spec.arguments()[0]

    def call(x, *, implementation):
        if layout is None:
            return block_hadamard(x, spec.block, implementation=implementation)
        return hadamard_quantize(x, layout, implementation=implementation)

    if layout is None:
        values = max(config.values, 16 * spec.block)
    else:
        values = config.rows * min(config.chunk(layout, spec.channels), spec.channels)
    return pass_case(
        spec.name,
        kernel="block_hadamard" if layout is None else "hadamard_quantize",
        call=call,
        args=(x,),
        step_bytes=values * x.dtype.itemsize,
        tensor_core=True,
    )


CASES = tuple(rotation(spec) for spec in named.SPECS)
