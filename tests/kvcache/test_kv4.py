"""The 4-bit cache: exact where it says so, the same however tokens arrive, and attention as if dequantised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import KV4, kv4
from compressjax.models.attention import attend
from compressjax.models.rope import rotary_angles, rotate
from compressjax.ops import nbits

CFG = KV4(group=32, residual=32)
B, K, H, D = 2, 2, 4, 32

append = functools.partial(jax.jit, static_argnames="cfg")(kv4.append)
prefill = functools.partial(jax.jit, static_argnames="cfg")(kv4.prefill)
attention = functools.partial(jax.jit, static_argnames="cfg")(kv4.kv4_attention)
quantize = functools.partial(jax.jit, static_argnames=("axis", "cfg"))(kv4.kv_quantize)
dequantize = functools.partial(jax.jit, static_argnames=("axis", "cfg", "dtype"))(kv4.kv_dequantize)
round_trip = functools.partial(jax.jit, static_argnames=("axis", "cfg"))(kv4.round_trip)


def keys_and_values(tokens, seed=0, dtype=jnp.float32):
    """Keys with one channel that is large throughout, as models have them; values without."""
    a, b = jax.random.split(jax.random.key(seed))
    k = jax.random.normal(a, (B, tokens, K, D)) + 20.0 * (jnp.arange(D) == 3).astype(jnp.float32)[None, None, None]
    return k.astype(dtype), jax.random.normal(b, (B, tokens, K, D)).astype(dtype)


def filled(tokens, cfg=CFG, max_len=96, dtype=jnp.float32):
    k, v = keys_and_values(tokens, dtype=dtype)
    empty = kv4.init(cfg, batch=B, kv_heads=K, head_dim=D, max_len=max_len, dtype=dtype)
    return prefill(empty, k, v, cfg=cfg), k, v


def one_token_each(x):
    return jnp.swapaxes(x, 0, 1)[:, :, None]


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize("sym, bits", [(False, 4), (True, 4), (False, 3)])
def test_rounding_is_to_the_nearest_of_each_group(axis, sym, bits):
    cfg = KV4(bits=bits, group=16, residual=32, sym=sym)
    x = keys_and_values(64)[0]
    packed = quantize(x, axis=axis, cfg=cfg)
    back = dequantize(packed, axis=axis, cfg=cfg, dtype=jnp.float32)
    rows = np.asarray(x).transpose(0, 2, 1, 3)
    if axis == "channel":
        groups = rows.reshape(B, K, 4, 16, D).swapaxes(-1, -2)
    else:
        groups = rows.reshape(B, K, 64, 2, 16)
    if sym:
        step = np.abs(groups).max(-1) / (2 ** (bits - 1) - 1)
    else:
        step = (groups.max(-1) - groups.min(-1)) / (2**bits - 1)
    np.testing.assert_allclose(packed.scale, step, rtol=5e-3)  # the float16 low end moves the range, too
    miss = np.abs(np.asarray(back - x)).transpose(0, 2, 1, 3)
    wide = np.repeat(step, 16, axis=2) if axis == "channel" else np.repeat(step, 16, axis=3)
    # Half a step, and what float16 does to the step and to the low end.
    assert (miss <= 0.5 * wide + 2e-3 * np.abs(rows).max()).all()


def test_bits_are_those_of_the_groups():
    packed = quantize(jnp.zeros((1, 64, 1, 64)), axis="channel", cfg=KV4())
    assert nbits(packed) == 64 * 64 * 4 + 2 * 16 * 64
    assert nbits(packed) / 64**2 == 4.5


def test_equal_values_and_zeros_come_back_exactly():
    x = jnp.full((1, 32, 1, 32), 3.5).at[:, :, :, 5].set(0.0)
    for axis in ("channel", "token"):
        for sym in (True, False) if axis == "channel" else (False,):
            back = round_trip(x, axis=axis, cfg=KV4(group=32, residual=32, sym=sym))
            if axis == "channel":
                np.testing.assert_allclose(back, x, rtol=5e-4)
    np.testing.assert_array_equal(round_trip(jnp.zeros((1, 32, 1, 32)), axis="token", cfg=CFG), 0)
    np.testing.assert_array_equal(round_trip(jnp.full((1, 32, 1, 32), 3.5), axis="token", cfg=CFG), 3.5)


def test_keys_want_groups_along_a_channel():
    k = keys_and_values(64)[0]
    error = {a: float(jnp.mean((round_trip(k, axis=a, cfg=CFG) - k) ** 2)) for a in ("channel", "token")}
    assert error["channel"] < error["token"] / 4


@pytest.mark.parametrize("tokens", [32, 50, 64])
def test_token_by_token_is_as_all_at_once(tokens):
    cache, k, v = filled(tokens)
    assert (int(cache.frozen), int(cache.hot)) == (tokens // 32 * 32, tokens % 32)
    one = kv4.init(CFG, batch=B, kv_heads=K, head_dim=D, max_len=96, dtype=jnp.float32)
    one, _ = jax.jit(
        lambda c: jax.lax.scan(lambda c, kv: (kv4.append(c, *kv, CFG), None), c, jax.tree.map(one_token_each, (k, v)))
    )(one)
    whole, rest = int(cache.frozen), int(cache.hot)
    same((one.frozen, one.hot), (cache.frozen, cache.hot))
    for axis, a, b in ((CFG.k_axis, one.k, cache.k), (CFG.v_axis, one.v, cache.v)):
        values = (dequantize(packed, axis=axis, cfg=CFG, dtype=jnp.float32)[:, :whole] for packed in (a, b))
        np.testing.assert_array_equal(*values)
    np.testing.assert_array_equal(one.k_hot[:, :rest], k[:, whole:])
    np.testing.assert_array_equal(one.v_hot[:, :rest], v[:, whole:])


@pytest.mark.parametrize("tokens", [20, 32, 70])
def test_decoding_attends_to_the_dequantised_cache(tokens):
    cache, k, v = filled(tokens)
    q = jax.random.normal(jax.random.key(5), (B, 1, H, D))
    whole = tokens // 32 * 32
    kept = [
        jnp.concatenate([dequantize(p, axis=axis, cfg=CFG, dtype=jnp.float32)[:, :whole], x[:, whole:]], axis=1)
        for p, axis, x in ((cache.k, CFG.k_axis, k), (cache.v, CFG.v_axis, v))
    ]
    expected = attend(q, *kept, jnp.ones((1, 1, tokens), bool))
    np.testing.assert_allclose(attention(q, cache, cfg=CFG), expected, atol=1e-5)
    exact = attend(q, k, v, jnp.ones((1, 1, tokens), bool))
    assert (float(jnp.max(jnp.abs(expected - exact))) > 1e-4) == (whole > 0)


def test_a_text_at_once_is_as_decoded_token_by_token():
    tokens = 70
    k, v = keys_and_values(tokens)
    q = jax.random.normal(jax.random.key(5), (B, tokens, H, D))
    at_once = kv4.attention_as_decoded(q, k, v, CFG)

    def step(cache, t):
        kv = (jax.lax.dynamic_slice_in_dim(a, t, 1, axis=1) for a in (k, v))
        cache = kv4.append(cache, *kv, CFG)
        return cache, kv4.kv4_attention(jax.lax.dynamic_slice_in_dim(q, t, 1, axis=1), cache, CFG)[:, 0]

    start = kv4.init(CFG, batch=B, kv_heads=K, head_dim=D, max_len=96, dtype=jnp.float32)
    _, one_by_one = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(tokens)))(start)
    np.testing.assert_allclose(at_once, jnp.swapaxes(one_by_one, 0, 1), atol=1e-5)


def test_keys_stored_before_rotation_are_rotated_when_read():
    cfg = KV4(group=32, residual=32, pre_rope=True)
    cache, k, v = filled(50, cfg)
    cos, sin = rotary_angles(jnp.arange(96 + 32)[None], D, 1e4)
    q = jax.random.normal(jax.random.key(5), (B, 1, H, D))
    kept = jnp.concatenate([round_trip(k[:, :32], axis="channel", cfg=cfg), k[:, 32:]], axis=1)
    values = jnp.concatenate([round_trip(v[:, :32], axis="token", cfg=cfg), v[:, 32:]], axis=1)
    expected = attend(q, rotate(kept, cos[:, :50], sin[:, :50]), values, jnp.ones((1, 1, 50), bool))
    np.testing.assert_allclose(kv4.kv4_attention(q, cache, cfg, (cos, sin)), expected, atol=1e-5)


def test_bfloat16_stays_and_the_ring_is_exact_in_it():
    cache, k, _ = filled(40, dtype=jnp.bfloat16)
    assert cache.k_hot.dtype == jnp.bfloat16
    np.testing.assert_array_equal(cache.k_hot[:, :8], k[:, 32:])
    q = jnp.ones((B, 1, H, D), jnp.bfloat16)
    assert attention(q, cache, cfg=CFG).dtype == jnp.bfloat16


def test_too_many_tokens_never_pass_in_silence():
    cache, k, v = filled(63, max_len=32)
    over = append(cache, k[:, :1], v[:, :1], cfg=CFG)
    assert bool(jnp.all(jnp.isnan(kv4.kv4_attention(jnp.ones((B, 1, H, D)), over, CFG))))
    with pytest.raises(ValueError, match="64 tokens do not fit 32 slots"):
        kv4.prefill(cache, *keys_and_values(64), CFG)


@pytest.mark.parametrize(
    "message, options",
    [
        ("bits must be in 2..8, got 1", {"bits": 1}),
        ("k_axis must be 'channel' or 'token', got 'head'", {"k_axis": "head"}),
        ("group must be >= 2", {"group": 1}),
        ("residual must be a positive multiple of 32 and of group=64, got 96", {"residual": 96}),
    ],
)
def test_config_refusals(message, options):
    with pytest.raises(ValueError, match=f"KV4.{message}"):
        KV4(**options)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="group=64 does not divide the head width 32 on the token axis"):
        kv4.init(KV4(), batch=1, kv_heads=1, head_dim=32, max_len=64)
    with pytest.raises(ValueError, match="48 tokens are not a multiple of residual=32"):
        kv4.kv_quantize(jnp.zeros((1, 48, 1, 32)), "channel", CFG)
    with pytest.raises(ValueError, match="max_len must be >= 1"):
        kv4.init(CFG, batch=1, kv_heads=1, head_dim=32, max_len=0)
    with pytest.raises(ValueError, match="rotary must be given exactly when"):
        kv4.kv4_attention(jnp.zeros((B, 1, H, D)), filled(4)[0], KV4(group=32, residual=32, pre_rope=True))
