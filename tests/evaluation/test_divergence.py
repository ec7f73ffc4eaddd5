"""KL divergence and top-1 agreement between two models, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.evaluation.divergence import divergence, token_kl
from tests.evaluation.toy_models import bigram, running, table, uniform

VOCAB = 9


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (5, 6))


def reference(first, second, tokens) -> tuple[np.ndarray, np.ndarray]:
    """KL and agreement of two bigram models at every position, in float64 numpy."""

    def log_softmax(rows):
        shifted = rows - rows.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

    log_p, log_q = (log_softmax(np.asarray(params, np.float64)[tokens]) for params in (first, second))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1), log_p.argmax(axis=-1) == log_q.argmax(axis=-1)


def test_a_model_does_not_differ_from_itself(tokens):
    result = divergence(running, table(1, VOCAB), table(1, VOCAB), tokens)
    assert (result.kl, result.agreement, result.tokens) == (0.0, 1.0, 30)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equals_brute_force_whatever_the_batch(tokens, batch_size):
    original, compressed = table(1, VOCAB), table(2, VOCAB)
    kl, same = reference(original, compressed, tokens)
    result = divergence(bigram, original, compressed, tokens, batch_size=batch_size)
    assert result.kl == pytest.approx(kl.mean(), rel=1e-5)
    assert result.agreement == pytest.approx(same.mean())
    assert 0 < result.agreement < 1
    np.testing.assert_allclose(result.window_kl, kl.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(result.window_agreement, same.mean(axis=1))
    assert result.standard_error == pytest.approx(kl.mean(axis=1).std(ddof=1) / np.sqrt(5), rel=1e-4)


def test_the_original_comes_first(tokens):
    """KL is not symmetric: exchanging the models gives the other divergence."""
    original, compressed = table(1, VOCAB), 2 * table(2, VOCAB)
    forward, backward = reference(original, compressed, tokens)[0], reference(compressed, original, tokens)[0]
    assert divergence(bigram, original, compressed, tokens).kl == pytest.approx(forward.mean(), rel=1e-5)
    assert abs(forward.mean() - backward.mean()) > 0.1


def test_two_functions(tokens):
    """Against the uniform model, KL is log V less the original's entropy."""
    original = table(1, VOCAB)
    kl, _ = reference(original, jnp.zeros((VOCAB, VOCAB)), tokens)
    result = divergence(bigram, original, jnp.zeros(VOCAB), tokens, compressed_logits_fn=uniform)
    assert result.kl == pytest.approx(kl.mean(), rel=1e-5)


def test_masked_positions_count_for_nothing(tokens):
    original, compressed = table(1, VOCAB), table(2, VOCAB)
    mask = np.ones(tokens.shape, bool)
    mask[0, :4], mask[1] = False, False
    kl, same = reference(original, compressed, tokens)
    result = divergence(bigram, original, compressed, tokens, mask=mask, batch_size=2)
    assert result.tokens == mask.sum()
    assert result.kl == pytest.approx(kl[mask].mean(), rel=1e-5)
    assert result.agreement == pytest.approx(same[mask].mean())
    assert np.isnan(result.window_kl[1])
    # NaN that a model returns at padding is not seen.
    broken = compressed.at[0].set(jnp.nan)
    padded = np.where(mask, np.where(tokens == 0, 1, tokens), 0)
    assert np.isfinite(divergence(bigram, original, broken, padded, mask=mask, batch_size=2).kl)


def test_excluded_tokens():
    """What the original excludes adds nothing; what only the compressed model excludes is infinitely far."""
    half = jnp.asarray([0.0, 0.0, -jnp.inf])
    assert token_kl(half, jnp.zeros(3)) == pytest.approx(np.log(3 / 2), rel=1e-6)
    assert token_kl(half, half) == 0
    assert token_kl(jnp.zeros(3), half) == jnp.inf


def test_at_most_one_array_of_the_logits_size_is_made():
    """The CPU compiler keeps the summands of the divergence, and no normalised copy of either model's logits."""
    logits = jax.ShapeDtypeStruct((1, 256, 4096), jnp.float32)
    analysis = jax.jit(token_kl).lower(logits, logits).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 1.1 * 4 * logits.size


def test_progress_is_told(tokens):
    seen = []
    divergence(
        bigram, table(1, VOCAB), table(2, VOCAB), tokens, batch_size=3, on_batch=lambda done, of: seen.append(done)
    )
    assert seen == [3, 5]


def test_bad_input_is_refused(tokens):
    good = table(1, VOCAB)
    with pytest.raises(ValueError, match="a model returned NaN in windows 0 to 0"):
        divergence(bigram, good, good.at[:].set(jnp.nan), tokens)
    with pytest.raises(ValueError, match="vocabularies differ: 9 and 10"):
        divergence(bigram, good, jnp.zeros(10), tokens, compressed_logits_fn=uniform)
    with pytest.raises(ValueError, match="hold id 9, but the model's logits cover 9 ids"):
        divergence(bigram, good, good, [[1, 9]])
    with pytest.raises(ValueError, match="no position is left to compare"):
        divergence(bigram, good, good, tokens, mask=np.zeros(tokens.shape, bool))
