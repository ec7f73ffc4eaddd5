"""Plain caches in, compressed caches out: by layer, by head, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import KIVI, DenseKV, Layout, RoundKV, Segment, cache_bytes, kv_compress, materialize
from compressjax.kvcache.by_head import ByHead
from compressjax.ops import nbits, size

from . import replay
from .rows import HEADS, RING

PROMPT = 40


def plain(data, prompt=PROMPT):
    return {name: jnp.asarray(getattr(data, name)[:, :, :prompt]) for name in ("k", "v")} | {
        "mask": jnp.asarray(data.mask[:, :prompt])
    }


def test_rules_by_layer_and_head_and_their_attention():
    data = replay.random_data(PROMPT + 30)
    rules = {"0/1": KIVI(bits=8, group=16, residual=RING, sinks=0), "1": None}
    cache = kv_compress(plain(data), rules, q_heads=HEADS, max_len=PROMPT + 30)
    first, second = cache.layout.segments
    assert isinstance(first.codec, ByHead) and second.codec == DenseKV(residual=RING)
    assert first.codec.parts[1] == (rules["0/1"], (1,))
    got, want, end = replay.replay(cache, data, PROMPT, PROMPT + 30)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert int(end.frozen) == 64 and int(end.hot) == 6
    held, exact = materialize(cache, 0), jnp.asarray(data.k[0, :, :RING])
    # Slots: the ring of 32 first, then the prompt's block.
    np.testing.assert_array_equal(held.k[:, 0, RING:64], exact[:, :, 0])
    assert 1e-4 < float(jnp.max(jnp.abs(held.k[0, 1, RING:64] - exact[0, :, 1]))) < 0.1


def test_one_layer_alone_is_as_in_the_stack():
    data = replay.random_data(PROMPT)
    codec = RoundKV(residual=RING)
    stack = kv_compress(plain(data), codec)
    cache = plain(data)
    one = kv_compress({"k": cache["k"][1], "v": cache["v"][1], "mask": cache["mask"]}, codec)
    for a, b in zip(jax.tree.leaves(one.states), jax.tree.leaves(stack.states), strict=True):
        np.testing.assert_array_equal(a[0], b[1])
    assert 2 * one.layout.spec.dense_bytes(1) == stack.layout.spec.dense_bytes(1)


def test_blocks_made_one_by_one_are_those_of_one_prompt():
    """What a flush compresses is what a longer prompt would have compressed, for groups inside a ring."""
    data = replay.random_data(96)
    codec = KIVI(bits=3, group=16, residual=RING)
    _, _, grown = replay.replay(replay.compressed(codec, data, 40, 96), data, 40, 96)
    whole = replay.compressed(codec, data, 96, 96)
    assert int(grown.frozen) == int(whole.frozen) == 96
    for layer in (0, 1):
        a, b = materialize(grown, layer), materialize(whole, layer)
        seen = np.asarray(b.seen)[:, :, 0]
        np.testing.assert_array_equal(np.asarray(a.seen)[:, :, 0], seen)
        for x, y in ((a.k, b.k), (a.v, b.v)):
            np.testing.assert_allclose(np.where(seen[..., None], x, 0), np.where(seen[..., None], y, 0), atol=1e-6)


def test_sizes_of_a_two_bit_cache():
    """Codes and scales by hand; allocated bytes shrink below a quarter of 16-bit floats in a long prompt."""
    k = jnp.zeros((1, 512, 1, 64))
    cache = kv_compress({"k": k, "v": k}, KIVI(bits=2, group=32, residual=32, sinks=0), dtype="bfloat16")
    frozen = 2 * 512 * 64 * (2 + 2 * 16 / 32) / 8
    ring = 2 * 32 * 64 * 2
    assert nbits(cache) == 8 * (frozen + ring + 512 + 8)
    assert size(cache) == 2 * 512 * 64
    assert cache_bytes(cache).live == frozen + 512
    assert cache_bytes(cache).baseline == 2 * 512 * 64 * 2


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"2": KIVI()}, "layers go from 0 to 1, got 2 to 2"),
        ({"*/2": KIVI()}, "heads go from 0 to 1, got 2 to 2"),
        ({"a": KIVI()}, "such as '0-3' or"),
        ({"0": KIVI(residual=64), "1": KIVI()}, r"rings together: sizes \[64, 128\]"),
        ({"0/0": KIVI(sinks=1), "0/1": KIVI()}, r"must agree in exact_sinks, got \[1, 4\]"),
    ],
)
def test_rules_that_mean_nothing(rules, message):
    with pytest.raises(ValueError, match=message):
        kv_compress(plain(replay.random_data(PROMPT)), rules)


def test_refusals():
    data = replay.random_data(PROMPT)
    cache = plain(data)
    codec = RoundKV(residual=RING)
    with pytest.raises(TypeError, match="one floating-point dtype, got float32 and bfloat16"):
        kv_compress(cache | {"v": cache["v"].astype(jnp.bfloat16)}, codec)
    with pytest.raises(ValueError, match="of equal sizes"):
        kv_compress(cache | {"v": cache["v"][:, :, :-1]}, codec)
    with pytest.raises(ValueError, match=r"length must be in 1..40, got 0"):
        kv_compress(cache | {"length": 0}, codec)
    with pytest.raises(ValueError, match="max_len=8 is less than the prompt of 40 tokens"):
        kv_compress(cache, codec, max_len=8)
    with pytest.raises(ValueError, match="does not divide q_heads=3"):
        kv_compress(cache, codec, q_heads=3)
    with pytest.raises(TypeError, match="a cache config is a codec, None or a mapping of rules, got int"):
        kv_compress(cache, 3)
    with pytest.raises(TypeError, match="rules map patterns to codecs or None, got int"):
        kv_compress(cache, {"*": 3})
    with pytest.raises(ValueError, match="needs a concrete length"):
        jax.jit(lambda n: kv_compress(cache | {"length": n}, codec))(3)
    spec = kv_compress(cache, codec).layout.spec
    with pytest.raises(ValueError, match="has 2 layers, but its segments end at 1"):
        Layout(spec, (Segment(codec, 0, 1),))
    with pytest.raises(ValueError, match=r"\(1,\)|each have one codec, got \[1\]"):
        Layout(spec, (Segment(ByHead(((codec, (1,)),)), 0, 2),))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: KIVI(bits=9), "KIVI.bits must be in 1..8, got 9"),
        (lambda: KIVI(residual=48), "KIVI.residual must be a positive multiple of 32 and of group=32, got 48"),
        (lambda: KIVI(sinks=-1), "KIVI.sinks must be >= 0"),
        (lambda: RoundKV(bits=0), "RoundKV.bits must be in 1..8"),
        (lambda: RoundKV(group=1), "RoundKV.group must be None or >= 2"),
        (lambda: DenseKV(residual=0), "DenseKV.residual must be >= 1"),
    ],
)
def test_config_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
