"""Cases of the product with sign and low-rank stacks: every spec, all blocks loaded."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels.affine_matmul import least_bytes
from pallas_kernels.proof.report import Case
from pallas_kernels.sign_lowrank_matmul import sign_lowrank_matmul
from pallas_kernels.sign_lowrank_matmul import specs as named
from pallas_kernels.sign_lowrank_matmul.config import choose_config
from pallas_kernels.sign_lowrank_matmul.xla import one_block


def forward(spec: named.SignSpec) -> Case:
    layout, args = spec.layout, spec.arguments()
    config = choose_config(spec.m, layout, jnp.dtype(spec.dtype))

    def straight(x, blocks):
        """The formula without its loop, whose bytes would count once however often it runs."""
        w = functools.reduce(jnp.add, (one_block(blocks, blocks.slots[j], layout) for j in range(spec.blocks)))
        return x @ w.astype(x.dtype)

    def valid(args):
        """Every block loaded, each in a place of its own."""
        x, blocks = args
        order = jnp.arange(spec.blocks, dtype=jnp.int32)
        return x, blocks._replace(slots=order, loaded=jnp.int32(spec.blocks))

    return Case(
        name=spec.name,
        kernel="sign_lowrank_matmul_r",
        fn=lambda x, blocks: sign_lowrank_matmul(x, blocks, layout, implementation="triton"),
        args=args,
        xla=straight,
        least_bytes=least_bytes(jax.tree.leaves(args), [jax.ShapeDtypeStruct((spec.m, layout.cols), spec.dtype)]),
        step_bytes=4 * config.tiles * layout.packing.words * config.block_n,
        tensor_core=True,
        decode=spec.m <= 16,
        valid=valid,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
