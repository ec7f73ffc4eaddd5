"""A full ring is rounded into the cache by the kernel on a GPU, with the bits that the formula gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.kv_append
from compressjax.kvcache import GEAR, KIVI, KV4, DenseKV, KVSpec, RoundKV, view_of
from compressjax.kvcache.cache import Layout
from compressjax.kvcache.packed_append import append_refusal
from compressjax.kvcache.protocol import Segment
from compressjax.ops import on_gpu

RING = 32
CODECS = {
    "kv4": KV4(group=16, residual=RING, sinks=2),
    "gear": GEAR(bits=4, group=16, residual=RING, sparsity=0.1),
    "kivi": KIVI(bits=2, group=16, residual=RING),
    "kv4-turned": KV4(bits=8, group=32, residual=RING, k_axis="token", sym=True, pre_rope=True),
    "gear-joined": GEAR(bits=4, base="kcvt", residual=RING, sparsity=0.1),
    "round": RoundKV(bits=8, residual=RING),
}
FAST = ("kv4",)


@pytest.fixture
def kernel_calls(monkeypatch):
    """As if a GPU were the default device; the kernel is run by the host. Axes of the calls."""
    real, calls = pallas_kernels.kv_append.kv_append, []

    def stand_in(*args, implementation, **options):
        assert implementation == "triton"
        calls.append(args[3].side.axis)
        return real(*args, implementation="interpret", **options)

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(pallas_kernels.kv_append, "kv_append", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    return calls


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CODECS])
def test_flush_takes_the_kernel(kernel_calls, monkeypatch, name):
    """Two layers at once, as a cache flushes them; the second of three blocks, with padding in one row."""
    codec, rng = CODECS[name], np.random.default_rng(0)
    spec = KVSpec(
        layers=2, batch=2, q_heads=4, kv_heads=2, head_dim=32, prompt=8, max_len=8 + 3 * RING, rope=(100.0, None)
    )
    layout = Layout(spec, (Segment(codec, 0, 2),))
    k, v = (jnp.asarray(rng.normal(size=(2, 1, 2, 2, 8, 32)), jnp.float32) for _ in range(2))
    ring = tuple(jnp.asarray(rng.normal(size=(2, 1, 2, 2, RING, 32)), jnp.float32) for _ in range(2))
    real = jnp.ones((2, spec.max_len), bool).at[1, :40].set(False)

    def flushed(k, v, ring):
        state = jax.vmap(lambda k, v: codec.prefill(spec, k, v, real[:, :8], None, None))(k, v)
        state = state._replace(hot=state.hot._replace(k=ring[0], v=ring[1]))
        view = view_of(layout, codec, real, jnp.int32(RING), jnp.int32(RING), 1)
        return jax.vmap(lambda s: codec.flush(spec, s, real[:, RING : 2 * RING], view))(state).frozen.chunks

    light = {"xla_backend_optimization_level": 0}
    ours = jax.jit(flushed, compiler_options=light)(k, v, ring)
    key = "token" if name in ("kv4-turned", "round") else "channel"
    assert kernel_calls == [key, "token"]
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: False)
    formula = jax.jit(lambda *args: flushed(*args), compiler_options=light)(k, v, ring)
    if name == "gear":
        # A fit sums in an order that the compiler chooses.
        fits = ((c.k.a, c.k.b, c.v.a, c.v.b) for c in (ours, formula))
        for a, b in zip(*fits, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3 * float(jnp.max(jnp.abs(b))))
        ours, formula = ((c.k.base, c.v.base, c.k.exact, c.v.exact, c.k.at, c.v.at) for c in (ours, formula))
    elif name.startswith("gear"):
        ours, formula = ((c.k.base, c.v.base) for c in (ours, formula))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(formula), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(np.asarray(b)[:, 1]) and not np.any(np.asarray(b)[:, [0, 2]])


def test_reasons_are_given():
    ring = jnp.zeros((1, 2, 256, 32))
    assert append_refusal(ring, "channel", 64) is None
    assert append_refusal(ring, "channel", 12) == "groups of 12 tokens cut runs of 8"
    assert append_refusal(ring, "token", 2048) == "groups have 2048 values"
    assert append_refusal(ring.astype(jnp.int32), "token", 32) == "the ring is int32"
    spec = KVSpec(layers=1, batch=1, q_heads=2, kv_heads=2, head_dim=32, prompt=RING, max_len=RING)
    assert DenseKV().append_refusal(spec, ring, ring) == "DenseKV has no kernel"
