import dataclasses
import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models import Sampling, decode_step, generate, prefill, stream

# The function `generate` hides the module of that name from attribute access.
MODULE = importlib.import_module("compressjax.models.generate")
PROMPT = np.random.default_rng(0).integers(0, 61, (2, 8))
NEW = 9
PREFILL = jax.jit(prefill, static_argnums=(0, 4), static_argnames="dtype")


def greedy_by_full_forwards(decoder, tokens, new):
    """Continues unpadded prompts by running the whole model again for every token, at one padded shape."""
    tokens = jnp.asarray(tokens, jnp.int32)
    length, total = tokens.shape[1], tokens.shape[1] + new
    tokens = jnp.pad(tokens, ((0, 0), (0, new)))
    for end in range(length, total):
        logits = decoder.logits(decoder.params, tokens)
        tokens = tokens.at[:, end].set(jnp.argmax(logits[:, end - 1], -1))
    return np.asarray(tokens)


@pytest.fixture(scope="module")
def greedy(everything):
    return greedy_by_full_forwards(everything, PROMPT, NEW)


def test_cached_decoding_is_the_full_forward(everything, greedy):
    got = generate(everything.cfg, everything.params, PROMPT, max_new_tokens=NEW)
    assert got.shape == (2, 8 + NEW) and got.dtype == jnp.int32
    np.testing.assert_array_equal(got, greedy)
    assert len(set(greedy[:, 8:].ravel())) > 4, "a constant continuation would test nothing"


def test_logits_of_every_step(everything):
    """Also where the window has left the prompt behind."""
    cfg, params = everything.cfg, everything.params
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 61, (2, 14)), jnp.int32)
    want = everything.logits(params, tokens)
    logits, cache = PREFILL(cfg, params, tokens[:, :3], None, 20)
    step = jax.jit(chex.assert_max_traces(decode_step, n=1), static_argnums=0)
    for t in range(3, 14):
        np.testing.assert_allclose(logits, want[:, t - 1], atol=2e-5)
        logits, cache = step(cfg, params, tokens[:, t], cache)
    np.testing.assert_allclose(logits, want[:, -1], atol=2e-5)
    assert cache["k"].shape == (3, 2, 20, 2, 8)
    assert int(cache["length"]) == 14
    np.testing.assert_array_equal(cache["mask"].sum(1), [14, 14])


def test_ragged_prompts_are_as_if_alone(everything, greedy):
    short = PROMPT[1:, 3:]
    alone = greedy_by_full_forwards(everything, short, NEW)
    tokens, mask = PROMPT.copy(), np.ones_like(PROMPT, bool)
    tokens[1, :3], mask[1, :3] = 5, False
    got = generate(everything.cfg, everything.params, tokens, mask=mask, max_new_tokens=NEW)
    np.testing.assert_array_equal(got[0], greedy[0])
    np.testing.assert_array_equal(got[1, 3:], alone[0])


def test_streaming_gives_the_same_tokens(everything, greedy):
    cfg, params = everything.cfg, everything.params
    hot = {"max_new_tokens": NEW, "sampling": Sampling(temperature=1.5, top_k=20), "key": jax.random.key(3)}
    whole = generate(cfg, params, PROMPT[:1], **hot)[0, 8:].tolist()
    assert list(stream(cfg, params, PROMPT[0], **hot)) == whole
    assert whole != greedy[0, 8:].tolist()


def test_streaming_compiles_its_step_once(tied):
    before = MODULE._next._cache_size()
    for _ in stream(tied.cfg, tied.params, PROMPT[0], max_new_tokens=6):
        pass
    assert MODULE._next._cache_size() == before + 1


def first_repeatless(row, start):
    """Index of a generated token that has not occurred earlier in the continuation, from ``start`` on."""
    return next(i for i in range(start, len(row)) if row[i] not in row[:i])


def test_rows_end_at_eos_and_are_filled_up(everything, greedy):
    cut = first_repeatless(greedy[0, 8:].tolist(), 2)
    eos = int(greedy[0, 8 + cut])
    got = np.asarray(generate(everything.cfg, everything.params, PROMPT, max_new_tokens=NEW, eos_id=eos))
    for row, free in zip(got[:, 8:], greedy[:, 8:], strict=True):
        end = free.tolist().index(eos) if eos in free else NEW - 1
        np.testing.assert_array_equal(row[: end + 1], free[: end + 1])
        assert (row[end + 1 :] == eos).all()
    streamed = list(stream(everything.cfg, everything.params, PROMPT[0], max_new_tokens=NEW, eos_id=[60, eos]))
    assert streamed == greedy[0, 8 : 8 + cut].tolist()


def test_work_stops_when_all_rows_have_ended(everything, greedy, monkeypatch):
    steps = []

    def counted(*args, **kwargs):
        jax.debug.callback(lambda: steps.append(1))
        return decode_step(*args, **kwargs)

    monkeypatch.setattr(MODULE, "decode_step", counted)
    # Another context length is another static config, so the counted step is traced afresh.
    cfg = dataclasses.replace(everything.cfg, max_positions=47)
    cut = first_repeatless(greedy[0, 8:].tolist(), 2)
    out = generate(cfg, everything.params, PROMPT[:1], max_new_tokens=NEW, eos_id=int(greedy[0, 8 + cut]))
    jax.effects_barrier()
    np.testing.assert_array_equal(out[0, 8 : 9 + cut], greedy[0, 8 : 9 + cut])
    assert len(steps) == cut


def test_a_step_does_not_copy_the_cache(tied):
    """With the cache donated, a step's temporaries hold one layer's slice, not all of them."""
    cfg = dataclasses.replace(tied.cfg, num_layers=16)
    params = tied.params | {"blocks": jax.tree.map(lambda a: jnp.concatenate([a] * 8), tied.params["blocks"])}
    slots, rows = 2048, 2
    shape = jax.ShapeDtypeStruct((16, rows, slots, 1, 16), jnp.float32)
    cache = {
        "k": shape,
        "v": shape,
        "mask": jax.ShapeDtypeStruct((rows, slots), jnp.bool_),
        "length": jax.ShapeDtypeStruct((), jnp.int32),
    }
    step = jax.jit(functools.partial(decode_step, cfg), donate_argnums=2)
    compiled = step.lower(params, jax.ShapeDtypeStruct((rows,), jnp.int32), cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * 2 * shape.size * 4


def test_bfloat16_cache(tied):
    _, cache = PREFILL(tied.cfg, tied.params, jnp.asarray(PROMPT, jnp.int32), None, 10, dtype=jnp.bfloat16)
    assert cache["k"].dtype == jnp.bfloat16
    _, after = jax.eval_shape(
        functools.partial(decode_step, tied.cfg, dtype=jnp.bfloat16), tied.params, jnp.zeros(2, jnp.int32), cache
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(after, cache)


def test_sampled_rows_differ_and_repeat_with_the_key(tied):
    same = np.repeat(PROMPT[:1], 4, axis=0)
    hot = {"max_new_tokens": 12, "sampling": Sampling(temperature=2.0)}
    one = generate(tied.cfg, tied.params, same, key=jax.random.key(0), **hot)
    assert len({tuple(row) for row in np.asarray(one)}) == 4
    np.testing.assert_array_equal(one, generate(tied.cfg, tied.params, same, key=jax.random.key(0), **hot))


@pytest.mark.parametrize(
    "tokens, options, message",
    [
        (
            PROMPT,
            {"max_new_tokens": 41},
            "8 tokens and max_new_tokens=41 need 49 positions, more than the context of 48",
        ),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        (np.zeros((1, 0), int), {}, "prompt is empty"),
        (PROMPT, {"mask": np.zeros((2, 8), bool)}, "row 0 is empty"),
        (PROMPT, {"mask": np.arange(8)[None] < [[8], [6]]}, "padded on the left.*row 1"),
        (PROMPT, {"mask": np.ones((2, 7), bool)}, r"shape \(2, 8\)"),
        (PROMPT[0], {}, r"\[batch, length\], got \(8,\)"),
        (PROMPT + 0.5, {}, "integers"),
        (PROMPT + 64, {}, r"\[0, 64\)"),
        (PROMPT - 64, {}, r"\[0, 64\)"),
        (PROMPT, {"eos_id": 64}, "eos_id.*64"),
        (PROMPT, {"sampling": Sampling(temperature=0.7)}, "temperature 0.7 needs a random key"),
    ],
)
def test_refusals(tied, tokens, options, message):
    with pytest.raises(ValueError, match=message):
        generate(tied.cfg, tied.params, tokens, **({"max_new_tokens": 4} | options))


def test_streaming_refuses_at_the_call(tied):
    with pytest.raises(ValueError, match="prompt is empty"):
        stream(tied.cfg, tied.params, [], max_new_tokens=4)
    with pytest.raises(ValueError, match="one prompt"):
        stream(tied.cfg, tied.params, PROMPT, max_new_tokens=4)
    with pytest.raises(ValueError, match="need 60 positions"):
        stream(tied.cfg, tied.params, PROMPT[0], max_new_tokens=52)


def test_prefill_refuses_a_cache_that_is_too_short(tied):
    with pytest.raises(ValueError, match="max_len=7 is less than the 8 tokens"):
        prefill(tied.cfg, tied.params, jnp.asarray(PROMPT, jnp.int32), None, 7)
