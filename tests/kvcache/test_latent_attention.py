"""Caches of latents take the kernel for them on a GPU, and it gives what the formula gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.mla_attention
from compressjax.kvcache import GEAR, KV4, DenseKV, KVSpec, RoundKV, view_of
from compressjax.kvcache.cache import Layout
from compressjax.kvcache.latent_attention import Latents, latent_refusal
from compressjax.kvcache.partial import finish, log_sum_exp
from compressjax.kvcache.protocol import Segment
from compressjax.ops import on_gpu

RING, RANK, ROPE = 32, 24, 8
SPEC = KVSpec(
    layers=1,
    batch=2,
    q_heads=3,
    kv_heads=1,
    head_dim=RANK + ROPE,
    value_dim=RANK,
    shared=True,
    prompt=70,
    max_len=70 + 2 * RING,
)
CODECS = {
    "dense": DenseKV(residual=RING),
    "kv4": KV4(group=16, residual=RING, sinks=2),
    "round": RoundKV(bits=3, residual=RING, sinks=0),
}


@pytest.fixture
def kernel_calls(monkeypatch):
    """As if a GPU were the default device; the kernel is run by the host. Layouts of the calls."""
    real, calls = pallas_kernels.mla_attention.mla_attention, []

    def stand_in(*args, implementation, **options):
        assert implementation == "triton"
        calls.append(args[4])
        return real(*args, implementation="interpret", **options)

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(pallas_kernels.mla_attention, "mla_attention", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    return calls


@pytest.mark.parametrize("name", ["dense", "kv4", pytest.param("round", marks=pytest.mark.slow)])
def test_attention_takes_the_kernel(kernel_calls, monkeypatch, name):
    """A prompt with padding, one chunk compressed and room for another."""
    codec, rng = CODECS[name], np.random.default_rng(0)
    layout = Layout(SPEC, (Segment(codec, 0, 1),))
    k = jnp.asarray(rng.normal(size=(1, 2, 1, SPEC.prompt, SPEC.head_dim)), jnp.float32)
    q = jnp.asarray(rng.normal(size=(2, 1, 3, 1, SPEC.head_dim)), jnp.float32)
    real = jnp.arange(SPEC.max_len)[None] >= jnp.array([[0], [9]])

    def filled(k):
        state = codec.prefill(SPEC, k, k[..., :0], real[:, : SPEC.prompt], None, None)
        full = state._replace(hot=jax.tree.map(lambda a: a + 1, state.hot))
        view = view_of(layout, codec, real, jnp.int32(64), jnp.int32(RING), 1)
        return codec.flush(SPEC, full, jnp.ones((2, RING), bool), view)

    def attended(q, state):
        return codec.attend(SPEC, state, q, view_of(layout, codec, real, jnp.int32(96), jnp.int32(3), 1), 0)[0]

    light = {"xla_backend_optimization_level": 0}
    with monkeypatch.context() as patch:
        patch.setattr(on_gpu, "on_gpu", lambda: False)
        state = jax.jit(filled, compiler_options=light)(k)
    ours = jax.jit(attended, compiler_options=light)(q, state)
    assert [(layout.tokens, layout.rank, layout.rope) for layout in kernel_calls] == [(64, 24, 8), (32, 24, 8)]
    assert [layout.side is None for layout in kernel_calls] == [name == "dense"] * 2
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: False)
    formula = jax.jit(lambda q, state: attended(q, state), compiler_options=light)(q, state)
    np.testing.assert_allclose(finish(ours), finish(formula), atol=2e-5)
    np.testing.assert_allclose(log_sum_exp(ours), log_sum_exp(formula), atol=2e-5)


def test_reasons_are_given():
    held = jnp.zeros((1, 1, 32, 32))
    q = jnp.zeros((1, 1, 3, 1, 32))
    assert latent_refusal(Latents(held), q) is None
    assert latent_refusal("why", q) == "why"
    assert latent_refusal(Latents(held), q[:, :, :, [0, 0]]) == "there are 2 new tokens"
    assert latent_refusal(Latents(held), q[:, [0, 0]]) == "a token has 2 latents"
    assert latent_refusal(Latents(held), q.astype(int)) == "activations are int32"
    assert latent_refusal(Latents(held), jnp.zeros((1, 1, 3, 1, 288))) == "latents have 288 channels in float32"
    assert latent_refusal(Latents(held), jnp.zeros((1, 1, 3, 1, 640), jnp.bfloat16)) is not None
    assert GEAR().latents(SPEC, None) == "GEAR has no kernel for latents"
    turned = dataclasses.replace(CODECS["kv4"], pre_rope=True)
    assert "before their rotation" in turned.latents(SPEC, None)
