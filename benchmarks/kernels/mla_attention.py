"""Cases of the attention to latents that all heads share: every spec."""

import dataclasses

import jax.numpy as jnp

from benchmarks.kernels.row import pass_case
from pallas_kernels.mla_attention import mla_attention
from pallas_kernels.mla_attention import specs as named
from pallas_kernels.mla_attention.config import choose_config, partial_bytes
from pallas_kernels.proof.report import Case

_BOUND = 0.05  # of the compulsory bytes, what decoding may move beyond them


def attention(spec: named.MLASpec) -> Case:
    def call(q, latents, start, stop, seen=None, *, implementation):
        return mla_attention(q, latents, start, stop, spec.layout, seen=seen, implementation=implementation)

    def valid(args):
        """All tokens are seen."""
        q, latents, start, stop, *seen = args
        tokens = spec.blocks * spec.layout.tokens
        return q, latents, start * 0, stop * 0 + tokens, *(jnp.ones_like(each) for each in seen)

    mask, lay, q = spec.seen(), spec.layout, spec.arguments()[0]
    config = choose_config(q, spec.blocks, lay)
    size = q.dtype.itemsize if lay.side is None else 4 * len(lay.packing.planes)
    case = pass_case(
        spec.name,
        kernel="mla_attention",
        call=call,
        args=(*spec.arguments(), *([] if mask is None else [mask])),
        step_bytes=config.rows * lay.width * size,
        tensor_core=True,
        valid=valid,
    )
    # With few texts idle multiprocessors cost more than the sums of splits, which no bound on bytes allows for.
    return dataclasses.replace(case, decode=partial_bytes(q, lay, config.splits) <= _BOUND * case.least_bytes)


CASES = tuple(attention(spec) for spec in named.SPECS)
