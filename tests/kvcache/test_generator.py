"""Generation on a compressed cache: exact where the codec is, without a second trace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import (
    DenseKV,
    Generator,
    LlamaForm,
    RoundKV,
    compress_ring,
    decode_step,
    generator,
    kv_compress,
    materialize,
)
from compressjax.kvcache import prefill as decoding_prefill
from compressjax.models import Llama, Sampling, generate, prefill

from .conftest import random_params

PROMPT = np.random.default_rng(0).integers(0, 61, (2, 50))
NEW = 40


def test_plain_cache_gives_what_the_plain_generator_gives(windowed):
    """Ragged prompts, grouped heads, a sliding window that leaves the prompt behind, and two flushes."""
    cfg, params = windowed
    mask = np.ones_like(PROMPT, bool)
    mask[1, :7] = False
    want = generate(cfg, params, PROMPT, mask=mask, max_new_tokens=NEW)
    programs = (generator._read, generator._next, compress_ring)
    before = [program._cache_size() for program in programs]
    got = Generator(cfg, params, DenseKV(residual=16)).generate(PROMPT, mask=mask, max_new_tokens=NEW)
    np.testing.assert_array_equal(got, want)
    assert [program._cache_size() - n for program, n in zip(programs, before, strict=True)] == [1, 1, 1]
    assert len(set(np.asarray(got)[:, 50:].ravel())) > 4


@pytest.fixture(scope="module")
def rounded(model):
    return Generator(*model, RoundKV(bits=8, residual=32))


def test_streaming_gives_the_same_tokens_and_shows_the_cache_grow(rounded, model):
    whole = rounded.generate(PROMPT[:1], max_new_tokens=NEW)[0, 50:].tolist()
    stream = rounded.stream(PROMPT[0], max_new_tokens=NEW)
    assert stream.bytes is None
    tokens, sizes = [], []
    for token in stream:
        tokens.append(token)
        sizes.append(stream.bytes)
    assert tokens == whole
    assert all(size.allocated == sizes[0].allocated for size in sizes)
    assert sizes[0].live < sizes[5].live and sizes[-1].baseline == 89 * 2 * 2 * 4 * 2 * 32
    # A flush turns exact slots into codes: 14 steps after the prompt of 50 the ring is full.
    assert sizes[14].live < sizes[13].live
    eos = tokens[3]
    ended = list(rounded.stream(PROMPT[0], max_new_tokens=NEW, eos_id=eos))
    assert ended == tokens[: tokens.index(eos)]
    filled = rounded.generate(PROMPT[:1], max_new_tokens=NEW, eos_id=eos)[0, 50:].tolist()
    assert filled == [*tokens[: tokens.index(eos) + 1], *[eos] * (NEW - tokens.index(eos) - 1)]


def test_a_text_scored_after_a_compressed_prompt(rounded, model):
    """Eight bits are nearly exact: the logits are those of the whole text read at once."""
    cfg, params = model
    text = PROMPT[:1]
    _, cache = rounded.read(text[:, :40])
    got = rounded.score(text[:, 40:], cache)
    want = jax.jit(lambda p, t: Llama(cfg).apply({"params": p}, t))(params, jnp.asarray(text, jnp.int32))[:, 40:]
    np.testing.assert_allclose(jax.nn.log_softmax(got), jax.nn.log_softmax(want), atol=0.05)


def test_sampling_draws_by_the_key(rounded):
    hot = {"max_new_tokens": 5, "sampling": Sampling(temperature=1.5, top_k=20)}
    draws = [rounded.generate(PROMPT[:1], key=jax.random.key(seed), **hot)[0, 50:].tolist() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_refusals(rounded):
    with pytest.raises(ValueError, match="the prompt is empty"):
        rounded.generate(np.zeros((1, 0), np.int32), max_new_tokens=1)
    with pytest.raises(ValueError, match="more than the context of 256"):
        rounded.generate(PROMPT, max_new_tokens=300)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1"):
        rounded.stream(PROMPT[0], max_new_tokens=0)
    with pytest.raises(ValueError, match="needs a random key"):
        rounded.generate(PROMPT, max_new_tokens=1, sampling=Sampling(temperature=1.0))
    with pytest.raises(ValueError, match=r"stream takes one prompt"):
        rounded.stream(PROMPT, max_new_tokens=1)


@pytest.mark.slow
def test_a_plain_cache_compressed_later_is_the_same(rounded, model):
    cfg, params = model
    _, plain = jax.jit(prefill, static_argnums=(0, 4))(cfg, params, jnp.asarray(PROMPT, jnp.int32), None, 60)
    later = kv_compress(plain, rounded.kv, q_heads=cfg.num_heads)
    _, at_once = rounded.read(PROMPT, new=10)
    assert later.layout.spec.max_len == 60 and int(later.hot) == int(at_once.hot) == 18
    for layer in (0, 3):
        for a, b in zip(materialize(later, layer)[:2], materialize(at_once, layer)[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=0.05)


@pytest.mark.slow
def test_a_step_unpacks_one_layer_at_a_time(model):
    """Temporaries of a compiled step are a few layers' plain caches, not all sixteen."""
    cfg = dataclasses.replace(model[0], num_layers=16, max_positions=1024)
    params = random_params(cfg)
    form, codec = LlamaForm(cfg), RoundKV(bits=4, residual=32)
    layout = Generator(cfg, params, codec).layout(1, 960, 1024)
    tokens = jnp.zeros((1, 960), jnp.int32)
    _, cache = jax.eval_shape(lambda p: decoding_prefill(form, layout, p, tokens, jnp.ones((1, 960), bool)), params)
    step = jax.jit(lambda p, t, c: decode_step(form, p, t, c), donate_argnums=2)
    compiled = step.lower(params, jnp.zeros(1, jnp.int32), cache).compile()
    one_layer = 2 * 1024 * cfg.num_kv_heads * cfg.head_dim * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * one_layer
