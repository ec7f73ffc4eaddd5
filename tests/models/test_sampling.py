import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models.sampling import Sampling, sample

ROWS, VOCAB = 20000, 8
LOGITS = jnp.log(jnp.array([0.02, 0.3, 0.05, 0.25, 0.2, 0.1, 0.05, 0.03]))


def draws(cfg, logits=LOGITS, seed=0):
    return np.asarray(sample(jnp.broadcast_to(logits, (ROWS, VOCAB)), jax.random.key(seed), cfg))


def frequencies(tokens):
    return np.bincount(tokens, minlength=VOCAB) / len(tokens)


def close(tokens, probabilities):
    """Within five standard deviations of every expected frequency."""
    sigma = np.sqrt(probabilities * (1 - probabilities) / len(tokens))
    return (np.abs(frequencies(tokens) - probabilities) <= 5 * sigma + 1e-12).all()


def random_logits():
    return jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, VOCAB)), jnp.float32)


def test_greedy_takes_the_largest_and_needs_no_luck():
    logits = random_logits()
    got = sample(logits, jax.random.key(0), Sampling())
    np.testing.assert_array_equal(got, jnp.argmax(logits, -1))
    assert got.dtype == jnp.int32


@pytest.mark.parametrize("cfg", [Sampling(temperature=1.0, top_k=1), Sampling(temperature=5.0, top_p=1e-6)])
def test_a_support_of_one_is_greedy_also_on_ties(cfg):
    logits = random_logits().round()
    assert int((logits == logits.max(-1, keepdims=True)).sum()) > ROWS
    np.testing.assert_array_equal(sample(logits, jax.random.key(1), cfg), jnp.argmax(logits, -1))


def test_a_vanishing_temperature_is_greedy_and_finite():
    logits = random_logits()
    got = sample(logits, jax.random.key(1), Sampling(temperature=1e-30))
    np.testing.assert_array_equal(got, jnp.argmax(logits, -1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature):
    want = np.asarray(jax.nn.softmax(LOGITS / temperature))
    tokens = draws(Sampling(temperature=temperature))
    assert close(tokens, want)
    assert not close(tokens, np.asarray(jax.nn.softmax(LOGITS / (1.3 * temperature))))


def test_top_k_renormalises_the_k_best():
    want = np.zeros(VOCAB)
    want[[1, 3, 4]] = np.array([0.3, 0.25, 0.2]) / 0.75
    assert close(draws(Sampling(temperature=1.0, top_k=3)), want)


@pytest.mark.parametrize(
    "top_p, kept", [(0.29, [1]), (0.31, [1, 3]), (0.54, [1, 3]), (0.56, [1, 3, 4]), (1.0, list(range(VOCAB)))]
)
def test_top_p_keeps_the_fewest_that_reach_p(top_p, kept):
    want = np.zeros(VOCAB)
    want[kept] = np.exp(LOGITS)[jnp.array(kept)]
    assert close(draws(Sampling(temperature=1.0, top_p=top_p)), want / want.sum())


def test_top_p_works_on_what_top_k_left():
    # Of the 3 best, renormalised to .4 .33 .27, two reach 0.7; of all tokens it would take three.
    tokens = draws(Sampling(temperature=1.0, top_k=3, top_p=0.7))
    assert set(tokens) == {1, 3}


def test_a_top_k_beyond_the_vocabulary_keeps_all():
    assert close(draws(Sampling(temperature=1.0, top_k=1000, top_p=1.0)), np.asarray(jnp.exp(LOGITS)))


def test_same_key_same_tokens():
    cfg = Sampling(temperature=1.0, top_p=0.9)
    np.testing.assert_array_equal(draws(cfg), draws(cfg))
    assert (draws(cfg) != draws(cfg, seed=1)).any()


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ],
)
def test_refusals_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*{value}"):
        Sampling(**{field: value})
