"""Cases of the product with tables: every spec."""

import jax.numpy as jnp

from benchmarks.kernels.row import product_case
from pallas_kernels.codebook_matmul import codebook_matmul
from pallas_kernels.codebook_matmul import specs as named
from pallas_kernels.codebook_matmul.config import choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.CodebookSpec) -> Case:
    layout = spec.layout

    def call(x, codes, levels, *, implementation):
        return codebook_matmul(x, codes, levels, layout, implementation=implementation)

    return product_case(
        spec,
        m=spec.m,
        packing=layout.packing,
        config=choose_config(spec.m, layout, jnp.dtype(spec.dtype)),
        kernel=f"codebook_matmul_l{layout.levels}$",
        call=call,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
