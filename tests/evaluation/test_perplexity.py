"""Perplexity against brute force, on models whose answer is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.data.windows import windows
from compressjax.evaluation.perplexity import bits_per_byte, perplexity, perplexity_strided, token_nll
from tests.evaluation.toy_models import bigram, reference_nll, running, table, uniform

VOCAB = 11


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (5, 8))


def test_uniform_model_has_the_vocabulary_as_perplexity(tokens):
    result = perplexity(uniform, jnp.zeros(VOCAB), tokens)
    assert result.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert result.nll == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result.tokens == 5 * 7
    assert result.standard_error == pytest.approx(0, abs=1e-7)


def test_a_model_that_knows_the_text_has_perplexity_one():
    text = np.arange(6)[None]
    knows = jnp.asarray(1e4 * np.roll(np.eye(VOCAB), 1, axis=1), jnp.float32)  # after i comes i + 1
    assert perplexity(bigram, knows, text).perplexity == 1.0


@pytest.mark.parametrize("model", [bigram, running])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_equals_brute_force_whatever_the_batch(tokens, model, batch_size):
    params = table(1, VOCAB)
    result = perplexity(model, params, tokens, batch_size=batch_size)
    expected = np.array([[reference_nll(params, row, t, model) for t in range(1, 8)] for row in tokens])
    assert result.nll == pytest.approx(expected.mean(), rel=1e-5)
    assert result.perplexity == pytest.approx(np.exp(expected.mean()), rel=1e-5)
    np.testing.assert_allclose(result.window_nll, expected.mean(axis=1), rtol=1e-5)
    assert result.standard_error == pytest.approx(expected.mean(axis=1).std(ddof=1) / np.sqrt(5), rel=1e-4)


def test_one_window_has_no_standard_error(tokens):
    assert perplexity(bigram, table(1, VOCAB), tokens[:1]).standard_error is None


@pytest.mark.parametrize(("n", "window", "stride"), [(40, 10, 3), (40, 10, 10), (41, 10, 5), (10, 10, 4), (23, 2, 1)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_strided_equals_brute_force(n, window, stride, batch_size):
    params = table(2, VOCAB)
    ids = np.random.default_rng(3).integers(0, VOCAB, n)
    expected, done, start = [], 0, 0
    while done < n:
        start = min(start, n - window)
        expected += [reference_nll(params, ids[start:], t - start) for t in range(max(done, start + 1), start + window)]
        done, start = start + window, start + stride
    result = perplexity_strided(running, params, ids, window=window, stride=stride, batch_size=batch_size)
    assert result.tokens == len(expected)
    assert result.nll == pytest.approx(np.mean(expected), rel=1e-5)
    if stride < window:
        assert result.tokens == n - 1


def test_a_bigram_model_does_not_mind_the_stride():
    ids = np.random.default_rng(3).integers(0, VOCAB, 50)
    whole = perplexity(bigram, table(2, VOCAB), ids[None])
    for stride in (1, 4, 9):
        part = perplexity_strided(bigram, table(2, VOCAB), ids, window=10, stride=stride)
        assert (part.tokens, part.nll) == (whole.tokens, pytest.approx(whole.nll, rel=1e-6))


@pytest.mark.parametrize("stride", [1, 4, 8])
def test_overlapping_windows_equal_the_strided_text(stride):
    ids = np.random.default_rng(4).integers(0, VOCAB, 8 + 4 * stride)
    params = table(2, VOCAB)
    by_windows = perplexity(running, params, windows(ids, 8, stride=stride), stride=stride)
    by_text = perplexity_strided(running, params, ids, window=8, stride=stride)
    assert (by_windows.tokens, by_windows.nll) == (by_text.tokens, by_text.nll)


def test_masked_tokens_count_for_nothing(tokens):
    """Left and right padding give what the unpadded windows give, and rubbish under the mask changes nothing."""
    params = table(1, VOCAB)
    mask = np.ones(tokens.shape, bool)
    mask[0, :3] = False
    mask[1, 5:] = False
    mask[2] = False
    real = [tokens[0, 3:], tokens[1, :5], *tokens[3:]]
    expected = [[reference_nll(params, row, t) for t in range(1, len(row))] for row in real]
    result = perplexity(running, params, tokens, mask=mask, batch_size=2)
    assert result.tokens == sum(map(len, expected))
    assert result.nll == pytest.approx(np.mean(np.concatenate(expected)), rel=1e-5)
    assert result.window_tokens.tolist() == [4, 4, 0, 7, 7]
    assert np.isnan(result.window_nll[2])
    rubbish = np.where(mask, tokens, VOCAB - 1)
    assert perplexity(running, params, rubbish, mask=mask, batch_size=2).nll == result.nll


def test_a_mask_of_ones_is_no_mask(tokens):
    params = table(1, VOCAB)
    plain, masked = perplexity(running, params, tokens), perplexity(running, params, tokens, mask=tokens >= 0)
    np.testing.assert_array_equal(plain.window_nll, masked.window_nll)


def test_bits_per_byte(tokens):
    result = perplexity(uniform, jnp.zeros(16), tokens, num_bytes=70)
    assert result.bits_per_byte == pytest.approx(35 * 4 / 70, rel=1e-6)
    assert perplexity(uniform, jnp.zeros(16), tokens).bits_per_byte is None
    # A byte-level uniform model costs eight bits for each byte.
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)


def test_low_precision_logits_are_reduced_in_float32():
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(1, 4, 1000)), jnp.bfloat16)
    ids = jnp.asarray([[1, 2, 3, 4]], jnp.int32)
    nll = token_nll(logits, ids)
    assert nll.dtype == jnp.float32
    exact = np.asarray(logits, np.float64)[0, :3]
    expected = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(3), [2, 3, 4]]
    # bfloat16 would be off by up to 2**-9 of a sum of about 7.4.
    np.testing.assert_allclose(nll[0], expected, rtol=1e-5)


def test_every_batch_runs_one_program(tokens):
    traces = []

    def counting(params, ids, mask=None):
        traces.append(ids.shape)
        return bigram(params, ids)

    perplexity(counting, table(1, VOCAB), tokens, batch_size=2)
    perplexity(counting, table(2, VOCAB), tokens, batch_size=2)
    assert traces == [(2, 8)]


def test_no_second_copy_of_the_logits_is_made():
    """Temporaries of the compiled reduction stay well below the logits themselves."""
    shape = (1, 256, 4096)
    arguments = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], jnp.int32))
    analysis = jax.jit(token_nll).lower(*arguments).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 4 * math.prod(shape) / 10


def test_progress_is_told(tokens):
    seen = []
    perplexity(bigram, table(1, VOCAB), tokens, batch_size=2, on_batch=lambda done, of: seen.append((done, of)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_an_impossible_token_has_infinite_perplexity(tokens):
    never = table(1, VOCAB).at[:, int(tokens[0, 1])].set(-jnp.inf)
    result = perplexity(bigram, never, tokens)
    assert result.nll == math.inf and result.perplexity == math.inf


def test_a_huge_loss_does_not_overflow():
    wrong = jnp.full((2, 2), 0.0).at[0, 1].set(-5000.0)
    result = perplexity(bigram, wrong, np.array([[0, 1]]))
    assert (result.nll, result.perplexity) == (5000.0, math.inf)


def test_nan_names_the_windows(tokens):
    tokens = np.where(tokens == 10, 9, tokens)
    tokens[3, 2] = 10
    with pytest.raises(ValueError, match="the model returned NaN in windows 2 to 3"):
        perplexity(bigram, table(1, VOCAB).at[10].set(jnp.nan), tokens, batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tokens": [1, 2, 3]}, ValueError, r"shape \[windows >= 1, length >= 2\], got \(3,\)"),
        ({"tokens": [[1]]}, ValueError, r"got \(1, 1\)"),
        ({"tokens": np.zeros((0, 4), int)}, ValueError, r"got \(0, 4\)"),
        ({"tokens": [[1.0, np.nan]]}, TypeError, "tokens must be integers, got float64"),
        ({"tokens": [[1, -1]]}, ValueError, "must not be negative, got -1"),
        ({"tokens": [[1, 11]]}, ValueError, "hold id 11, but the model's logits cover 11 ids"),
        ({"tokens": [[1, 2]], "mask": [[1, 1]]}, TypeError, "mask must be bool, got int64"),
        ({"tokens": [[1, 2]], "mask": [True, True]}, ValueError, r"shape of tokens, \(1, 2\), got \(2,\)"),
        ({"tokens": [[1, 2, 3]], "mask": [[True, False, True]]}, ValueError, "no token is left to score"),
        ({"tokens": [[1, 2]], "batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"tokens": [[1, 2]], "stride": 3}, ValueError, "stride must be between 1 and the window length 2, got 3"),
        ({"tokens": [[1, 2]], "num_bytes": 0}, ValueError, "num_bytes must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        perplexity(bigram, table(1, VOCAB), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": range(9), "window": 10, "stride": 5}, "a text of 9 tokens is shorter than one window of 10"),
        ({"ids": range(9), "window": 1, "stride": 1}, "window must be at least 2 tokens, got 1"),
        ({"ids": range(9), "window": 4, "stride": 5}, "stride must be between 1 and window=4, got 5"),
        ({"ids": range(9), "window": 4, "stride": 0}, "stride must be between 1 and window=4, got 0"),
        ({"ids": [[1, 2]], "window": 2, "stride": 1}, r"one-dimensional, got shape \(1, 2\)"),
    ],
)
def test_bad_strides_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perplexity_strided(bigram, table(1, VOCAB), **arguments)


def test_logits_of_another_shape_are_refused(tokens):
    with pytest.raises(ValueError, match=r"must return \[B, T, V\] for tokens of shape \(1, 8\), got \(1, 7, 11\)"):
        perplexity(lambda params, ids, mask=None: params[ids][:, 1:], table(1, VOCAB), tokens)
