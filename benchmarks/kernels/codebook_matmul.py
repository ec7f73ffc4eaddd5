"""Cases of the product with tables: every spec."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels.affine_matmul import least_bytes
from pallas_kernels.codebook_matmul import codebook_matmul
from pallas_kernels.codebook_matmul import specs as named
from pallas_kernels.codebook_matmul.config import choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.CodebookSpec) -> Case:
    layout, args = spec.layout, spec.arguments()
    config = choose_config(spec.m, layout, jnp.dtype(spec.dtype))

    def call(x, codes, levels, *, implementation):
        return codebook_matmul(x, codes, levels, layout, implementation=implementation)

    return Case(
        name=spec.name,
        kernel=f"codebook_matmul_l{layout.levels}$",
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=functools.partial(call, implementation="xla"),
        least_bytes=least_bytes(args, [jax.ShapeDtypeStruct((spec.m, layout.cols), spec.dtype)]),
        step_bytes=4 * config.tiles * layout.packing.words * config.block_n,
        tensor_core=True,
        decode=spec.m <= 16,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
