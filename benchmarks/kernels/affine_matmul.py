"""Cases of the packed product: forward at every spec, again by the Hopper kernel where it fits, and two backward."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks.kernels.row import least_bytes, product_case
from pallas_kernels.affine_matmul import affine_matmul
from pallas_kernels.affine_matmul import specs as named
from pallas_kernels.affine_matmul.config import choose_config
from pallas_kernels.affine_matmul.jax_triton import jax_triton_config
from pallas_kernels.affine_matmul.mosaic_config import misfit
from pallas_kernels.proof.report import Case


def _call(spec: named.AffineSpec):
    def call(x, codes, scale, zero=None, *, implementation):
        return affine_matmul(x, codes, scale, zero, spec.layout, implementation=implementation)

    return call


def forward(spec: named.AffineSpec) -> Case:
    layout = spec.layout
    return product_case(
        spec,
        m=spec.m,
        packing=layout.packing,
        config=choose_config(spec.m, layout, jnp.dtype(spec.dtype)),
        kernel=f"affine_matmul_w{layout.bits}$",
        call=_call(spec),
    )


def hopper(spec: named.AffineSpec) -> Case:
    """The Mosaic kernel; the copy unit loads whole blocks, so there is no count of loads for it to miss."""
    case = forward(spec)
    return dataclasses.replace(
        case,
        name=f"{spec.name}-mosaic",
        kernel=f"affine_matmul_w{spec.layout.bits}_mosaic",
        fn=functools.partial(_call(spec), implementation="mosaic"),
        step_bytes=0,
        targets=("H100",),
    )


def in_triton(spec: named.AffineSpec) -> Case:
    """The kernel in Triton's own language, through jax-triton."""
    case, config = forward(spec), jax_triton_config(spec.m, spec.layout, spec.dtype)
    return dataclasses.replace(
        case,
        name=f"{spec.name}-jax-triton",
        kernel="affine_matmul_in_triton",
        fn=functools.partial(_call(spec), implementation="jax-triton"),
        step_bytes=4 * spec.layout.packing.words * config.block_n,
    )


def backward(spec: named.AffineSpec) -> Case:
    layout = spec.layout
    args = tuple(a for a in spec.arguments() if a is not None)
    y = jax.ShapeDtypeStruct((spec.m, layout.cols), spec.dtype)

    def pull(y_bar, x, codes, scale, zero=None, *, implementation):
        def product(x, scale):
            return affine_matmul(x, codes, scale, zero, layout, implementation=implementation)

        return jax.vjp(product, x, scale)[1](y_bar)

    return Case(
        name=f"{spec.name}-backward",
        kernel=f"affine_matmul_w{layout.bits}_(dx|dscale)$",
        fn=functools.partial(pull, implementation="triton"),
        args=(y, *args),
        xla=functools.partial(pull, implementation="xla"),
        least_bytes=least_bytes([y, *args], [args[0], args[2]]),
        step_bytes=0,
        tensor_core=True,
        decode=False,
        kernels=2,
    )


HOPPER_SPECS = tuple(s for s in named.SPECS if misfit(s.m, s.dtype, s.scale_dtype, s.layout) is None)
JAX_TRITON_SPECS = (
    *(named.spec(title, m) for title in ("Llama-3-8B/q", "Qwen3-0.6B/down") for m in (1, 16, 512)),
    named.spec("SmolLM2-135M/down", 1),
    *(named.spec("Llama-3-8B/gate", m, bits=bits) for bits in (2, 8) for m in (1, 512)),
    named.spec("Llama-3-8B/q", 1, zero_kind="none"),
)
CASES = (
    *(forward(spec) for spec in named.SPECS),
    *(hopper(spec) for spec in HOPPER_SPECS),
    *(in_triton(spec) for spec in JAX_TRITON_SPECS),
    *(backward(named.spec("Llama-3-8B/q", m)) for m in (16, 512)),
    *(backward(named.spec("Llama-3-8B/q", 512, bits=bits)) for bits in (2, 3, 8)),
    backward(named.spec("Qwen3-0.6B/down", 512)),
)
