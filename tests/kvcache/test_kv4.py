"""The 4-bit cache: exact where it says so, the same however tokens arrive, and attention as if dequantised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import KV4, append_token, kv4, kv_compress, materialize
from compressjax.models.attention import attend
from compressjax.models.rope import rotary_angles, rotate
from compressjax.ops import nbits

CFG = KV4(group=32, residual=32)
B, K, H, D = 2, 2, 4, 32

quantize = functools.partial(jax.jit, static_argnames=("axis", "cfg"))(kv4.kv_quantize)
dequantize = functools.partial(jax.jit, static_argnames=("axis", "cfg", "dtype"))(kv4.kv_dequantize)
round_trip = functools.partial(jax.jit, static_argnames=("axis", "cfg"))(kv4.round_trip)


def keys_and_values(tokens, seed=0, dtype=jnp.float32):
    """Keys with one channel that is large throughout, as models have them; values without."""
    a, b = jax.random.split(jax.random.key(seed))
    k = jax.random.normal(a, (B, tokens, K, D)) + 20.0 * (jnp.arange(D) == 3).astype(jnp.float32)[None, None, None]
    return k.astype(dtype), jax.random.normal(b, (B, tokens, K, D)).astype(dtype)


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


def cached(tokens, max_len=96, cfg=CFG, of=None):
    """One layer's cache after the first ``tokens`` tokens of a text of ``of``."""
    k, v = (x[:, :tokens] for x in keys_and_values(of or tokens))
    return kv_compress({"k": k, "v": v}, cfg, q_heads=H, max_len=max_len, rope=(1e4, None)), k, v


@pytest.mark.parametrize("tokens", [20, 70])
def test_frozen_tokens_are_rounded_and_the_ring_is_exact(tokens):
    cache, k, v = cached(tokens)
    plain = materialize(cache, 0)
    whole = tokens // 32 * 32
    # The ring comes first.
    np.testing.assert_array_equal(plain.k[:, :, : tokens - whole], jnp.swapaxes(k[:, whole:], 1, 2))
    if whole:
        held = round_trip(k[:, :whole], axis=CFG.k_axis, cfg=CFG), round_trip(v[:, :whole], axis=CFG.v_axis, cfg=CFG)
        for got, want in zip((plain.k, plain.v), held, strict=True):
            np.testing.assert_array_equal(got[:, :, 32 : 32 + whole], jnp.swapaxes(want, 1, 2))


def test_a_text_at_once_is_as_decoded_token_by_token():
    tokens = 70
    k, v = keys_and_values(tokens)
    q = jax.random.normal(jax.random.key(5), (B, tokens, H, D))
    at_once = kv4.attention_as_decoded(q, k, v, CFG)
    for at in (40, 62, 69):  # 31 and 63 fill a ring, which this form compresses one token earlier
        cache, _, _ = cached(at, of=tokens)
        plain = materialize(cache, 0)
        real = np.asarray(plain.seen)[0, 0, 0]
        past = [jnp.swapaxes(x[:, :, real], 1, 2) for x in (plain.k, plain.v)]
        keys, values = (
            jnp.concatenate([old, new[:, at : at + 1]], axis=1) for old, new in zip(past, (k, v), strict=True)
        )
        want = attend(q[:, at : at + 1], keys, values, jnp.ones((1, 1, at + 1), bool))
        np.testing.assert_allclose(at_once[:, at : at + 1], want, atol=1e-5)


def test_keys_stored_before_rotation_are_rotated_when_read():
    cfg = KV4(group=32, residual=32, pre_rope=True)
    plain = materialize(cached(50, cfg=cfg)[0], 0)
    k, _ = keys_and_values(50)
    cos, sin = rotary_angles(jnp.arange(32)[None], D, 1e4)
    held = round_trip(rotate(k[:, :32], cos, -sin), axis="channel", cfg=cfg)
    np.testing.assert_allclose(plain.k[:, :, 32:64], jnp.swapaxes(rotate(held, cos, sin), 1, 2), atol=0.02)


def test_too_many_tokens_never_pass_in_silence():
    cache, k, v = cached(32, max_len=32)
    extra = tuple(jnp.swapaxes(x[None, None, :, :1], 3, 2) for x in (k, v))
    extra = tuple(x.reshape(1, 1, B, K, 1, D) for x in extra)
    over = append_token(cache, ((*extra, None),))
    assert bool(jnp.all(jnp.isnan(over.states[0].hot.k[..., 0, :])))


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
        kv_compress(dict(zip(("k", "v"), keys_and_values(64), strict=True)), KV4())
    with pytest.raises(ValueError, match="48 tokens are not a multiple of residual=32"):
        kv4.kv_quantize(jnp.zeros((1, 48, 1, 32)), "channel", CFG)
    with pytest.raises(ValueError, match="pre_rope needs a model with rotary positions"):
        kv_compress(dict(zip(("k", "v"), keys_and_values(64), strict=True)), KV4(group=32, residual=32, pre_rope=True))
    with pytest.raises(ValueError, match=r"KV4.pre_rope and KV4.sinks must be off"):
        kv4.attention_as_decoded(*(jnp.zeros((1, 4, 1, 32)),) * 3, KV4(group=32, residual=32, sinks=4))
