"""Cases of rounding and packing, and of the way back: every spec, both ways where nothing is random."""

import jax.numpy as jnp

from benchmarks.kernels.row import least_bytes, pass_case
from pallas_kernels.proof.report import Case
from pallas_kernels.quantize_pack import Packed, quantize_pack, unpack_dequantize
from pallas_kernels.quantize_pack import specs as named
from pallas_kernels.quantize_pack.config import choose_config
from pallas_kernels.quantize_pack.lanes import blocks_of_lanes


def programs(spec: named.PackSpec) -> int:
    """Programs of the kernel."""
    config = choose_config(spec.shape, jnp.dtype(spec.dtype), spec.layout)
    return blocks_of_lanes(spec.shape, spec.layout, config.values)[1]


def packing(spec: named.PackSpec) -> Case:
    def call(x, key=None, *, implementation):
        return quantize_pack(x, spec.layout, key=key, implementation=implementation)

    args = spec.arguments()
    return pass_case(
        spec.name, kernel="quantize_pack", call=call, args=args, step_bytes=least_bytes(args[0], ()) // programs(spec)
    )


def unpacking(spec: named.PackSpec) -> Case:
    def call(*arrays, implementation):
        low = arrays[2] if len(arrays) > 2 else None
        packed = Packed(arrays[0], arrays[1], low)
        return unpack_dequantize(packed, spec.shape, spec.layout, dtype=spec.dtype, implementation=implementation)

    args = tuple(a for a in spec.packed() if a is not None)
    return pass_case(
        f"{spec.name}-unpack",
        kernel="unpack_dequantize",
        call=call,
        args=args,
        step_bytes=least_bytes(args[0], ()) // programs(spec),
    )


CASES = (
    *(packing(spec) for spec in named.SPECS),
    *(unpacking(spec) for spec in named.SPECS if not spec.random),
)
