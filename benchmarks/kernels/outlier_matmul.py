"""Cases of the packed product with outliers: every spec."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels.affine_matmul import least_bytes
from pallas_kernels.outlier_matmul import outlier_matmul
from pallas_kernels.outlier_matmul import specs as named
from pallas_kernels.outlier_matmul.config import choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.OutlierSpec) -> Case:
    layout, m = spec.base.layout, spec.base.m
    args = spec.arguments()
    dtype = jnp.dtype(spec.base.dtype)
    config = choose_config(m, layout, dtype)

    def call(x, base, outliers, *, implementation):
        return outlier_matmul(x, base, outliers, layout, implementation=implementation)

    def valid(args):
        """Equally many outliers per output, at inputs that exist."""
        x, base, outliers = args
        starts = jnp.linspace(0, spec.capacity, layout.cols + 1).astype(jnp.int32)
        return x, base, outliers._replace(starts=starts, inputs=outliers.inputs % jnp.uint16(layout.rows))

    return Case(
        name=spec.name,
        kernel="outlier_(affine|codebook)",
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=functools.partial(call, implementation="xla"),
        least_bytes=least_bytes(jax.tree.leaves(args), [jax.ShapeDtypeStruct((m, layout.cols), dtype)]),
        step_bytes=4 * config.tiles * layout.packing.words * config.block_n,
        tensor_core=True,
        decode=m <= 16,
        valid=valid,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
