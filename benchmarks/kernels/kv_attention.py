"""Cases of the attention to packed keys and values: every spec."""

import jax.numpy as jnp

from benchmarks.kernels.row import pass_case
from pallas_kernels.kv_attention import kv_attention
from pallas_kernels.kv_attention import specs as named
from pallas_kernels.proof.report import Case


def attention(spec: named.AttentionSpec) -> Case:
    def call(q, past, start, stop, seen=None, *, implementation):
        return kv_attention(q, past, start, stop, spec.layout, seen=seen, implementation=implementation)

    def valid(args):
        """All tokens are seen."""
        q, past, start, stop, *seen = args
        tokens = spec.blocks * spec.layout.tokens
        return q, past, start * 0, stop * 0 + tokens, *(jnp.ones_like(each) for each in seen)

    mask = spec.seen()
    lay = spec.layout
    words = sum(side.bits * side.width * lay.tile // 8 for side in (lay.key, lay.value))
    return pass_case(
        spec.name,
        kernel="kv_attention",
        call=call,
        args=(*spec.arguments(), *([] if mask is None else [mask])),
        step_bytes=words,
        tensor_core=True,
        valid=valid,
    )


CASES = tuple(attention(spec) for spec in named.SPECS)
