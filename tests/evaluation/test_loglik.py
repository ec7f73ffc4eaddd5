"""The log-likelihood engine: brute force, tokenisation at the border, buckets, and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.evaluation.loglik import Likelihood, LikelihoodEngine, Request, bucket
from tests.evaluation.toy_models import reference_nll, running, table

VOCAB = 128
PARAMS = table(0, VOCAB)


def encode(text: str) -> list[int]:
    """One token per byte, and one for the pair "ab"."""
    return [1 if piece == "\x01" else ord(piece) for piece in text.replace("ab", "\x01")]


def engine(**changes) -> LikelihoodEngine:
    settings = {"logits_fn": running, "params": PARAMS, "encode": encode, "context": 200, "batch_tokens": 128}
    return LikelihoodEngine(**(settings | changes))


def brute_force(context: list[int], continuation: list[int]) -> float:
    whole = np.array(context + continuation)
    return -sum(reference_nll(PARAMS, whole, t) for t in range(len(context), len(whole)))


def test_equals_brute_force_in_the_order_of_the_requests():
    rng = np.random.default_rng(1)

    def text(length):
        return "".join(chr(c) for c in rng.integers(ord("c"), ord("z"), length))

    requests = [Request(text(rng.integers(1, 120)), " " + text(rng.integers(1, 12))) for _ in range(11)]
    scores = engine().loglik(requests)
    assert len(scores) == len(requests)
    for request, score in zip(requests, scores, strict=True):
        expected = brute_force(encode(request.context), encode(request.continuation))
        assert score.logprob == pytest.approx(expected, rel=1e-4)
        assert score.tokens == score.num_bytes == len(request.continuation)


def test_the_batch_changes_nothing():
    requests = [Request("context", " " + "xyz" * i) for i in range(1, 12)]
    for other in (engine(batch_tokens=2), engine(batch_tokens=512)):
        for one, two in zip(engine().loglik(requests), other.loglik(requests), strict=True):
            assert one.logprob == pytest.approx(two.logprob, rel=1e-5)
            assert one[1:] == two[1:]


def test_greedy_is_what_greedy_decoding_writes():
    ids = encode("start")
    for _ in range(5):
        ids.append(int(np.asarray(PARAMS, np.float64)[ids].sum(axis=0).argmax()))
    decode = dict(enumerate(map(chr, range(VOCAB))))
    written = "".join(decode[i] for i in ids[5:])
    wrong = written[:-1] + chr((ord(written[-1]) + 1) % VOCAB)
    plain = engine(encode=lambda text: [ord(c) for c in text])
    assert [score.greedy for score in plain.loglik([Request("start", written), Request("start", wrong)])] == [
        True,
        False,
    ]


def test_bytes_are_not_characters():
    plain = engine(encode=lambda text: [ord(c) % VOCAB for c in text])
    assert plain.loglik([Request("a", " é€")])[0][1:3] == (3, 6)


def test_a_token_across_the_border_does_not_change_the_context():
    """ "a" + "b" would become the one token "ab": the context keeps its own tokens and "b" is scored alone."""
    score = engine().loglik([Request("xa", "b")])[0]
    assert score.tokens == 1
    assert score.logprob == pytest.approx(brute_force(encode("xa"), encode("b")), rel=1e-5)


def test_an_empty_context_needs_a_prefix():
    with pytest.raises(ValueError, match="request 1: the context is empty"):
        engine().loglik([Request("a", "c"), Request("", "cd")])
    score = engine(prefix_id=7).loglik([Request("", "cd")])[0]
    assert score.tokens == 2
    assert score.logprob == pytest.approx(brute_force([7], encode("cd")), rel=1e-5)


def test_no_requests():
    assert engine().loglik([]) == []


def test_few_programs_serve_many_lengths():
    shapes = []

    def counting(params, tokens, mask=None):
        shapes.append(tokens.shape)
        return running(params, tokens)

    counted = engine(logits_fn=counting, context=100)
    counted.loglik([Request("c" * n, "d") for n in range(1, 100)])
    assert shapes == [(4, 32), (2, 48), (2, 64), (1, 96), (1, 100)]


@pytest.mark.parametrize("length", range(1, 2000, 7))
def test_buckets_waste_at_most_a_third(length):
    assert length <= bucket(length) <= max(32, length * 3 / 2)
    assert bucket(bucket(length)) == bucket(length)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="request 0: the continuation '' has no tokens"):
        engine().loglik([Request("a", "")])
    with pytest.raises(ValueError, match="request 1: 201 tokens are longer than the context of 200"):
        engine().loglik([Request("c" * 199, "d"), Request("c" * 200, "d")])
    with pytest.raises(ValueError, match="outside the model's 128 ids"):
        engine(encode=lambda text: [200] * len(text)).loglik([Request("a", "c")])
    with pytest.raises(ValueError, match="request 0: the model returned NaN"):
        engine(params=jnp.full((VOCAB, VOCAB), jnp.nan)).loglik([Request("a", "c")])


@pytest.mark.parametrize("field", ["context", "batch_tokens"])
def test_bad_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"LikelihoodEngine.{field} must be at least 2 tokens, got 1"):
        engine(**{field: 1})


def test_a_likelihood_is_a_row():
    assert Likelihood(-1.5, 2, 3, True)._asdict() == {"logprob": -1.5, "tokens": 2, "num_bytes": 3, "greedy": True}
