"""Cases of the product with stored groups: every spec."""

import jax.numpy as jnp

from benchmarks.kernels.row import pass_case
from pallas_kernels.group_sparse_matmul import group_sparse_matmul
from pallas_kernels.group_sparse_matmul import specs as named
from pallas_kernels.group_sparse_matmul.config import choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.GroupSparseSpec) -> Case:
    layout = spec.layout

    def call(x, stored, *, implementation):
        return group_sparse_matmul(x, stored, layout, implementation=implementation)

    def valid(args):
        """Groups that exist, and equally many of each output."""
        x, stored = args
        index = stored.index.astype(jnp.int32) % jnp.int32(layout.rows // layout.group)
        row_ptr = stored.row_ptr
        if row_ptr is not None:
            row_ptr = jnp.arange(layout.cols + 1, dtype=jnp.int32) * (layout.kept // layout.cols)
        return x, stored._replace(index=index.astype(stored.index.dtype), row_ptr=row_ptr)

    config = choose_config(spec.m, layout)
    # The activations that a step's groups meet come 16 bytes at a time; words of few bits are shorter than that.
    met = config.block_n * config.lanes * layout.group * jnp.dtype(spec.dtype).itemsize
    return pass_case(
        spec.name, kernel="group_sparse_matmul", call=call, args=spec.arguments(), step_bytes=met, valid=valid
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
