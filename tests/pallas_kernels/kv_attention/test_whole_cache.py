"""Attention to a whole compressed cache, compiled for a GPU: its kernels spill nothing and little is moved."""

import jax
import jax.numpy as jnp
import pytest

from compressjax.kvcache import GEAR, KIVI, KVSpec, view_of
from compressjax.kvcache.cache import Layout
from compressjax.kvcache.protocol import Segment
from compressjax.ops import on_gpu
from pallas_kernels.proof.compile import compile_for
from pallas_kernels.proof.report import kernel_facts
from pallas_kernels.proof.targets import H100
from pallas_kernels.proof.traffic import moved_bytes

pytestmark = [pytest.mark.kernels, pytest.mark.slow]

SPEC = KVSpec(layers=1, batch=1, q_heads=9, kv_heads=3, head_dim=64, prompt=2048, max_len=4096, dtype="bfloat16")


def ours(program):
    """Facts about the attention's kernels in a program."""
    return [kernel for kernel in kernel_facts(program, H100) if kernel["name"].startswith("kv_attention")]


@pytest.mark.parametrize("codec", [KIVI(), GEAR()], ids=["kivi", "gear"])
def test_attention_to_prompt_and_chunks(compiler, monkeypatch, codec):
    """Exact tokens, packed blocks and, with GEAR, outliers on both sides of the kernel."""
    layout = Layout(SPEC, (Segment(codec, 0, 1),))

    def arguments():
        k = jax.ShapeDtypeStruct((1, 1, SPEC.kv_heads, SPEC.prompt, SPEC.head_dim), SPEC.dtype)
        mask = jax.ShapeDtypeStruct((1, SPEC.prompt), bool)
        state = jax.eval_shape(lambda k, v, real: codec.prefill(SPEC, k, v, real, None, None), k, k, mask)
        q = jax.ShapeDtypeStruct((1, SPEC.kv_heads, SPEC.groups, 1, SPEC.head_dim), SPEC.dtype)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        return state, q, jax.ShapeDtypeStruct((1, SPEC.max_len), bool), count, count

    def attend(state, q, real, frozen, hot):
        return codec.attend(SPEC, state, q, view_of(layout, codec, real, frozen, hot, 1), 0)[0]

    program = compile_for(attend, arguments(), H100)
    facts = ours(program)
    assert len(facts) == 2
    assert [kernel["spilled_bytes"] + kernel["local_memory"] for kernel in facts] == [0, 0]
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: False)
    formula = compile_for(lambda *operands: attend(*operands), arguments(), H100)
    assert ours(formula) == []
    assert moved_bytes(formula.hlo) > 10 * moved_bytes(program.hlo)
