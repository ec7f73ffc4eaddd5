"""Grouped-query attention as latent attention: exact where it should be, optimal where it is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import (
    GEAR,
    KIVI,
    DenseKV,
    Generator,
    RoundKV,
    SnapKV,
    TransMLA,
    collect_kv_stats,
    gqa_to_mla,
    latent_logits,
)
from compressjax.kvcache.transmla import choose_freqfold, rorope_rotation, rotation_rows
from compressjax.kvcache.transmla_exact import attention_logits, gqa_to_mla_exact
from compressjax.models import Llama, generate
from compressjax.models.rope import rotary_angles, rotate

from .conftest import CFG, random_params

TOKENS = np.random.default_rng(3).integers(0, 61, (2, 48)).astype(np.int32)
EXACT = TransMLA(kv_lora_rank=64, qk_rope_dim=64)  # all 64 channels of the two heads keep their positions


def logits_of(cfg, params, tokens=TOKENS):
    return jax.jit(lambda p, t: Llama(cfg).apply({"params": p}, t))(params, tokens)


def converted_logits(form, params, tokens=TOKENS):
    return jax.jit(lambda p, t: latent_logits(form, p, t))(params, tokens)


@pytest.fixture(scope="module")
def stats(model):
    return collect_kv_stats(*model, [TOKENS])


@pytest.mark.parametrize("kv_heads, bias", [(1, False), (2, True), (4, False)])
def test_the_merge_is_exact(kv_heads, bias):
    cfg = dataclasses.replace(CFG, num_layers=2, num_kv_heads=kv_heads, qkv_bias=bias)
    params = random_params(cfg)
    if bias:
        attn = params["blocks"]["attn"]
        draw = np.random.default_rng(1).standard_normal
        for name in ("q", "k", "v"):
            attn[name]["bias"] = jnp.asarray(draw(attn[name]["bias"].shape), jnp.float32)
    merged = kv_heads * 32
    mla = TransMLA(kv_lora_rank=merged, qk_rope_dim=merged)
    form, new = gqa_to_mla(cfg, params, collect_kv_stats(cfg, params, [TOKENS]), mla, [])
    np.testing.assert_allclose(converted_logits(form, new), logits_of(cfg, params), atol=2e-3)
    assert (form.rank, form.rope_dim) == (merged, merged)


def test_the_rotation_across_heads_commutes_with_positions(stats):
    rows = np.concatenate(rotation_rows(np.asarray(stats.k[0], np.float64), EXACT, 2, 32))
    np.testing.assert_allclose(rows @ rows.T, np.eye(64), atol=1e-9)
    rng = np.random.default_rng(0)
    k = jnp.asarray(rng.standard_normal((1, 5, 64)), jnp.float32)
    cos, sin = rotary_angles(jnp.arange(5)[None] * 1000, 32, 200.0)
    turned = rotate(k.reshape(1, 5, 2, 32), cos, sin).reshape(1, 5, 64)
    # New channels come real parts first, 16 frequencies of two components each.
    new = (k @ jnp.asarray(rows.T, jnp.float32)).reshape(1, 5, 1, 64)
    two = rotate(new, jnp.repeat(cos, 2, axis=-1), jnp.repeat(sin, 2, axis=-1)).reshape(1, 5, 64)
    np.testing.assert_allclose(two, turned @ jnp.asarray(rows.T, jnp.float32), atol=1e-3)


def test_what_one_head_holds_ends_in_the_first_components():
    """Two heads of two channels, keys of the second always zero: one rotary pair then holds everything."""
    second = np.zeros((4, 4))
    second[:2, :2] = np.eye(2)
    u = rorope_rotation(second, TransMLA(kv_lora_rank=1, qk_rope_dim=2), 2, 2)
    np.testing.assert_allclose(np.abs(u[0]), np.eye(2), atol=1e-12)


def test_an_uncut_latent_is_the_partial_model_and_a_cut_one_is_optimal(model, stats):
    cfg, params = model
    whole, exact = gqa_to_mla(cfg, params, stats, TransMLA(kv_lora_rank=96, qk_rope_dim=32), [])
    rotated, all_of_it = gqa_to_mla(
        cfg, params, stats, TransMLA(kv_lora_rank=95, qk_rope_dim=32, damp=0.0, balance_kv=None), [TOKENS]
    )
    want = converted_logits(whole, exact)
    # Its least component carries next to nothing.
    np.testing.assert_allclose(
        jax.nn.log_softmax(converted_logits(rotated, all_of_it)), jax.nn.log_softmax(want), atol=0.3
    )
    losses = []
    for rank in (80, 48, 16):
        form, new = gqa_to_mla(cfg, params, stats, TransMLA(kv_lora_rank=rank, qk_rope_dim=32), [TOKENS])
        ours = jax.nn.log_softmax(converted_logits(form, new))
        reference = jax.nn.log_softmax(want)
        losses.append(float(jnp.mean((reference - ours) ** 2)))
    assert 0 < losses[0] < losses[1] < losses[2], losses


def test_decoding_is_the_whole_text_and_absorbing_changes_nothing(model, stats):
    """Logits after a prompt, absorbed, against the expanded pass; ragged and across a flush."""
    cfg, params = model
    form, new = gqa_to_mla(cfg, params, stats, TransMLA(kv_lora_rank=80, qk_rope_dim=32, freqfold=2), [TOKENS])
    generator = Generator(cfg, new, DenseKV(residual=32), form=form)
    want = converted_logits(form, new)
    _, cache = generator.read(TOKENS[:, :40])
    np.testing.assert_allclose(generator.score(TOKENS[:, 40:], cache), want[:, 40:], atol=2e-3)
    assert cache.states[0].hot.k.shape[-1] == 80 + 32 and cache.states[0].hot.v.shape[-1] == 0


def test_the_exact_form_generates_what_the_model_does(model, stats):
    cfg, params = model
    form, new = gqa_to_mla(cfg, params, stats, EXACT, [])
    mask = np.ones_like(TOKENS, bool)
    mask[1, :5] = False
    want = generate(cfg, params, TOKENS, mask=mask, max_new_tokens=20)
    got = Generator(cfg, new, DenseKV(residual=16), form=form).generate(TOKENS, mask=mask, max_new_tokens=20)
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "codec",
    [
        RoundKV(bits=8, residual=32),
        KIVI(bits=8, group=32, residual=32),
        GEAR(bits=8, group=32, residual=32, sparsity=0.0),
    ],
    ids=lambda codec: type(codec).__name__,
)
def test_latents_in_few_bits(model, stats, codec):
    cfg, params = model
    form, new = gqa_to_mla(cfg, params, stats, EXACT, [])
    generator = Generator(cfg, new, codec, form=form)
    _, cache = generator.read(TOKENS[:, :40])
    got = jax.nn.log_softmax(generator.score(TOKENS[:, 40:], cache))
    want = jax.nn.log_softmax(logits_of(cfg, params)[:, 40:])
    assert 1e-6 < float(jnp.abs(got - want).max()) < 0.2
    assert cache.states[0].frozen.prompt.v is None


@pytest.mark.slow
def test_a_low_rank_query(model, stats):
    cfg, params = model
    exact, narrow = (dataclasses.replace(EXACT, q_lora_rank=n) for n in (128, 96))
    form, new = gqa_to_mla(cfg, params, stats, exact, [])
    np.testing.assert_allclose(converted_logits(form, new), logits_of(cfg, params), atol=2e-3)
    _, cut = gqa_to_mla(cfg, params, stats, narrow, [])
    assert cut["blocks"]["attn"]["q_a"]["kernel"].shape == (4, 32, 96)


def test_folding_stops_at_the_first_rise():
    values = {2: 5.0, 4: 3.0, 8: 4.0, 16: 1.0}
    fold, seen = choose_freqfold(CFG, 16, values.__getitem__)
    assert fold == 4 and seen == {2: 5.0, 4: 3.0, 8: 4.0}
    assert TransMLA(kv_lora_rank=8, qk_rope_dim=16, freqfold=4).frequencies(32) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert TransMLA(kv_lora_rank=8, qk_rope_dim=64).frequencies(32)[:4] == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kv_lora_rank": 0}, "TransMLA.kv_lora_rank must be >= 1"),
        ({"q_lora_rank": 0}, "TransMLA.q_lora_rank must be None or >= 1"),
        ({"balance_kv": 0.0}, "TransMLA.balance_kv must be None or > 0"),
        ({"damp": -1.0}, "TransMLA.damp must be >= 0"),
    ],
)
def test_config_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        TransMLA(**options)


@pytest.mark.parametrize(
    "cfg, mla, message",
    [
        ({"qk_norm": True}, {}, "cannot convert a model with norms of query and key heads"),
        ({}, {"freqfold": 3}, "freqfold=3 does not divide the 16 frequencies"),
        ({}, {"qk_rope_dim": 48}, "must be a multiple of it, at most 64"),
        ({}, {"qk_rope_dim": 16, "freqfold": 1}, "freqfold=1 be a multiple of their ratio"),
        ({}, {"kv_lora_rank": 97}, "kv_lora_rank=97 exceeds the 96 channels"),
        ({}, {"q_lora_rank": 129}, "q_lora_rank=129 exceeds the 128 query channels"),
    ],
)
def test_models_and_sizes_without_a_conversion(cfg, mla, message):
    with pytest.raises(ValueError, match=message):
        TransMLA(**{"kv_lora_rank": 32, "qk_rope_dim": 32, **mla}).check(dataclasses.replace(CFG, **cfg))


def test_moments_must_be_there_and_finite(model, stats):
    with pytest.raises(ValueError, match="at least one batch"):
        collect_kv_stats(*model, [])
    with pytest.raises(ValueError, match="not finite"):
        gqa_to_mla(*model, stats._replace(k=stats.k * jnp.nan), EXACT, [])
    form, new = gqa_to_mla(*model, stats, EXACT, [])
    with pytest.raises(ValueError, match="scores tokens by attention|budget"):
        Generator(CFG, new, SnapKV(budget=300), form=form).read(TOKENS)


@pytest.mark.parametrize("factor, kv_heads, bias", [("identity", 2, False), ("svd", 2, True), ("svd", 1, False)])
def test_full_up_projections_are_exact(factor, kv_heads, bias):
    cfg = dataclasses.replace(CFG, num_layers=2, num_kv_heads=kv_heads, qkv_bias=bias)
    params = random_params(cfg)
    if bias:
        attn = params["blocks"]["attn"]
        for name in ("q", "k", "v"):
            attn[name]["bias"] = 0.3 + attn[name]["bias"]
    new = gqa_to_mla_exact(cfg, params, factor=factor)
    got = jax.jit(lambda p, t: attention_logits(cfg, p, t))(new, TOKENS)
    np.testing.assert_allclose(got, logits_of(cfg, params), atol=2e-3)
    with pytest.raises(ValueError, match="factor must be"):
        gqa_to_mla_exact(cfg, params, factor="qr")


def test_latents_say_what_grouped_heads_of_the_same_cache_cannot():
    """Dense up-projections give the stacked key maps of a group a rank above d; copies of one key head never do."""
    params = gqa_to_mla_exact(CFG, random_params(CFG))
    attn = params["blocks"]["attn"]
    down = np.asarray(attn["k_a"])[0]
    grouped = np.concatenate([down @ np.asarray(attn["k_b"])[0, head].T for head in (0, 1)], axis=1)
    assert np.linalg.matrix_rank(grouped, tol=1e-3) <= 32
    free = np.random.default_rng(0).standard_normal((2, 32, 64))
    wide = np.random.default_rng(1).standard_normal((128, 64))
    assert np.linalg.matrix_rank(np.concatenate([wide @ up.T for up in free], axis=1), tol=1e-3) == 64
