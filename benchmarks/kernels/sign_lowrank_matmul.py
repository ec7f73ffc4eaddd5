"""Cases of the product with sign and low-rank stacks: every spec, all blocks loaded."""

import functools

import jax.numpy as jnp

from benchmarks.kernels.row import product_case
from pallas_kernels.proof.report import Case
from pallas_kernels.sign_lowrank_matmul import sign_lowrank_matmul
from pallas_kernels.sign_lowrank_matmul import specs as named
from pallas_kernels.sign_lowrank_matmul.config import choose_config
from pallas_kernels.sign_lowrank_matmul.xla import one_block


def forward(spec: named.SignSpec) -> Case:
    layout = spec.layout

    def call(x, blocks, *, implementation):
        return sign_lowrank_matmul(x, blocks, layout, implementation=implementation)

    def straight(x, blocks):
        """The formula without its loop, whose bytes would count once however often it runs."""
        w = functools.reduce(jnp.add, (one_block(blocks, blocks.slots[j], layout) for j in range(spec.blocks)))
        return x @ w.astype(x.dtype)

    def valid(args):
        """Every block loaded, each in a place of its own."""
        x, blocks = args
        order = jnp.arange(spec.blocks, dtype=jnp.int32)
        return x, blocks._replace(slots=order, loaded=jnp.int32(spec.blocks))

    return product_case(
        spec,
        m=spec.m,
        packing=layout.packing,
        config=choose_config(spec.m, layout, jnp.dtype(spec.dtype)),
        kernel="sign_lowrank_matmul_r",
        call=call,
        xla=straight,
        valid=valid,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
