"""Cases of the product with additive codes: every spec."""

import functools

import jax.numpy as jnp

from benchmarks.kernels.row import DECODE_ROWS, least_bytes
from pallas_kernels.additive_matmul import additive_matmul
from pallas_kernels.additive_matmul import specs as named
from pallas_kernels.additive_matmul.config import LANES, choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.AdditiveSpec) -> Case:
    layout = spec.layout
    config = choose_config(spec.m, layout, jnp.dtype(spec.dtype))
    args = spec.arguments()
    x, _, books, _ = args

    def call(x, codes, codebooks, scale, *, implementation):
        return additive_matmul(x, codes, codebooks, scale, layout, implementation=implementation)

    # The vectors of a step are what is read most; those of fewer than 16 bytes are read as wide as they are.
    taken = config.block_n * LANES * config.quads * layout.books
    vector = layout.group * books.dtype.itemsize
    return Case(
        name=spec.name,
        kernel=f"additive_matmul_{layout.books}x{layout.bits}_g{layout.group}$",
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=functools.partial(call, implementation="xla"),
        least_bytes=least_bytes(args, None) + spec.m * layout.cols * x.dtype.itemsize,
        step_bytes=taken * vector if vector >= 16 else 0,
        tensor_core=True,
        decode=spec.m <= DECODE_ROWS,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
