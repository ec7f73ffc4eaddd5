"""Cases of the product with rounded activations: every spec, again by the Hopper kernel where it fits, and rounding."""

import dataclasses
import functools

import jax.numpy as jnp

from benchmarks.kernels.row import DECODE_ROWS, least_bytes, pass_case
from pallas_kernels.proof.report import Case
from pallas_kernels.w4ax_matmul import specs as named
from pallas_kernels.w4ax_matmul import w4ax_matmul, w4ax_quantize
from pallas_kernels.w4ax_matmul.config import choose_config
from pallas_kernels.w4ax_matmul.mosaic_config import misfit


def _valid(args):
    """Inputs that exist, each once, and a quarter of the blocks at 8 bits."""
    x, weight = args
    perm = weight.perm
    if perm is not None:
        perm = jnp.argsort(perm).astype(perm.dtype)
    return x, weight._replace(perm=perm, n_hi=jnp.int32(weight.scale.shape[0] // 4))


def _call(spec: named.W4AxSpec):
    def call(x, weight, *, implementation):
        return w4ax_matmul(x, weight, spec.layout, implementation=implementation)

    return call


def forward(spec: named.W4AxSpec) -> Case:
    config, call = choose_config(spec.m, spec.layout), _call(spec)
    args = spec.arguments()
    result = jnp.dtype(spec.dtype).itemsize * spec.m * spec.layout.cols
    return Case(
        name=spec.name,
        kernel="w4ax_matmul",
        fn=functools.partial(call, implementation="triton"),
        args=args,
        xla=functools.partial(call, implementation="xla"),
        least_bytes=least_bytes(args, None) + result,
        step_bytes=spec.layout.half * config.block_n,
        tensor_core=True,
        decode=spec.m <= DECODE_ROWS,
        valid=_valid,
    )


def hopper(spec: named.W4AxSpec) -> Case:
    """The Mosaic kernel; the copy unit loads whole blocks, so there is no count of loads for it to miss."""
    return dataclasses.replace(
        forward(spec),
        name=f"{spec.name}-mosaic",
        kernel="w4ax_matmul_mosaic",
        fn=functools.partial(_call(spec), implementation="mosaic"),
        step_bytes=0,
        targets=("H100",),
    )


def rounding(spec: named.W4AxSpec) -> Case:
    layout = spec.layout
    x, weight = spec.arguments()

    def call(x, perm, n_hi, *, implementation):
        # Only these arrays of the weight are read; the others say nothing about the activations.
        blank = weight._replace(
            codes=jnp.zeros(weight.codes.shape, jnp.uint8),
            scale=jnp.zeros(weight.scale.shape, weight.scale.dtype),
            perm=perm,
            n_hi=n_hi,
        )
        return tuple(w4ax_quantize(x, blank, layout, implementation=implementation))

    def valid(args):
        x, perm, _ = args
        return x, None if perm is None else jnp.argsort(perm).astype(perm.dtype), jnp.int32(layout.blocks // 4)

    # Permuted activations are gathered, two bytes at a time; those in order come 16 bytes at a time.
    wide = 0 if spec.permuted else 16 * layout.block * x.dtype.itemsize
    return pass_case(
        f"{spec.name}-quantize",
        kernel="w4ax_quantize",
        call=call,
        args=(x, weight.perm, weight.n_hi),
        step_bytes=wide,
        valid=valid,
    )


HOPPER_SPECS = tuple(spec for spec in named.SPECS if misfit(spec.m, spec.layout) is None)
CASES = (
    *(forward(spec) for spec in named.SPECS),
    *(hopper(spec) for spec in HOPPER_SPECS),
    rounding(named.spec("Llama-3-8B/down", 512)),
    rounding(named.spec("SmolLM2-135M/gate", 512)),
    rounding(named.spec("Llama-3-8B/q", 512, permuted=False)),
)
