"""Caches take the attention kernel on a GPU, and it gives what the formula gives."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.kv_attention
from compressjax.kvcache import GEAR, KIVI, KV4, DenseKV, KVSpec, RoundKV, view_of
from compressjax.kvcache.gear import GearBlock, GearBlocks
from compressjax.kvcache.packed import Packed
from compressjax.kvcache.partial import finish, log_sum_exp
from compressjax.ops import on_gpu

from . import replay
from .rows import RING

PROMPT = 70
CODECS = {
    "kivi": KIVI(bits=2, group=16, residual=RING),
    "round": RoundKV(bits=3, residual=RING, sinks=0),
    "gear": GEAR(group=16, residual=RING, sparsity=0.1),
}


@pytest.fixture
def kernel_calls(monkeypatch):
    """As if a GPU were the default device; the kernel is run by the host. Layouts of the calls."""
    real, calls = pallas_kernels.kv_attention.kv_attention, []

    def stand_in(*args, implementation, **options):
        assert implementation == "triton"
        calls.append(args[4])
        return real(*args, implementation="interpret", **options)

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(pallas_kernels.kv_attention, "kv_attention", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    return calls


def filled(codec, window=None):
    """A cache with padding, a compressed prompt, one chunk and room for another; its first layer and a query."""
    data = replay.random_data(PROMPT + 3 * RING)
    _, flush = replay.programs()
    # The flush has a kernel of its own, which is no business of these tests.
    with mock.patch.object(on_gpu, "on_gpu", lambda: False):
        cache = flush(replay.compressed(codec, data, PROMPT, PROMPT + 2 * RING, window=window))
    view = view_of(cache.layout, codec, cache.real, cache.frozen, cache.hot, 1)
    state = jax.tree.map(lambda a: a[0], cache.states[0])
    return cache.layout.spec, state, replay.token(data, PROMPT)[0][0], view


def light(fn):
    """``jax.jit`` that spends little on compiling."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", ["kivi", "gear", pytest.param("round", marks=pytest.mark.slow)])
def test_attention_takes_the_kernel(kernel_calls, monkeypatch, name):
    codec = CODECS[name]
    spec, state, q, view = filled(codec, window=60 if name == "kivi" else None)
    ours = light(lambda q: codec.attend(spec, state, q, view, 0)[0])(q)
    assert [layout.tokens for layout in kernel_calls] == [PROMPT // RING * RING, RING]
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: False)
    formula = light(lambda q: codec.attend(spec, state, q, view, 0)[0])(q)
    assert len(kernel_calls) == 2
    np.testing.assert_allclose(finish(ours), finish(formula), atol=2e-5)
    np.testing.assert_allclose(log_sum_exp(ours), log_sum_exp(formula), atol=2e-5)


def test_what_the_kernel_refuses_takes_the_formula(kernel_calls):
    codec = CODECS["kivi"]
    spec, state, q, view = filled(codec)
    two = jax.ShapeDtypeStruct((*q.shape[:3], 2, q.shape[4]), q.dtype)
    assert jax.eval_shape(lambda q: codec.attend(spec, state, q, view, 0)[0], two).acc.shape[3] == 2
    assert kernel_calls == []


def test_reasons_are_given():
    spec = KVSpec(layers=1, batch=1, q_heads=2, kv_heads=2, head_dim=32, prompt=RING, max_len=RING)
    words = Packed(jnp.zeros((1, 2, 2, 32), jnp.uint32), jnp.ones((1, 2, 1, 32)), None)
    part = GearBlock(words, None, None, jnp.zeros((1, 2, 32, 1), jnp.uint16), None)
    block = GearBlocks(part, part)
    assert not isinstance(GEAR().rounded_sides(spec, block), str)
    assert "all heads share" in GEAR(base="kcvt").rounded_sides(spec, block)
    assert "before their rotation" in KV4(group=32, pre_rope=True).rounded_sides(spec, block)
    assert "part of the keys" in KIVI().rounded_sides(dataclasses.replace(spec, shared=True, value_dim=16), block)
    assert DenseKV().rounded_sides(spec, block) == "DenseKV has no kernel"
