"""Cases of the packed product with outliers: every spec."""

import jax.numpy as jnp

from benchmarks.kernels.row import product_case
from pallas_kernels.outlier_matmul import outlier_matmul
from pallas_kernels.outlier_matmul import specs as named
from pallas_kernels.outlier_matmul.config import choose_config
from pallas_kernels.proof.report import Case


def forward(spec: named.OutlierSpec) -> Case:
    layout, m = spec.base.layout, spec.base.m

    def call(x, base, outliers, *, implementation):
        return outlier_matmul(x, base, outliers, layout, implementation=implementation)

    def valid(args):
        """Equally many outliers per output, at inputs that exist."""
        x, base, outliers = args
        starts = jnp.linspace(0, spec.capacity, layout.cols + 1).astype(jnp.int32)
        return x, base, outliers._replace(starts=starts, inputs=outliers.inputs % jnp.uint16(layout.rows))

    return product_case(
        spec,
        m=m,
        packing=layout.packing,
        config=choose_config(m, layout, jnp.dtype(spec.base.dtype)),
        kernel="outlier_(affine|codebook)",
        call=call,
        valid=valid,
    )


CASES = tuple(forward(spec) for spec in named.SPECS)
