import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.evaluation.divergence import divergence
from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.perplexity import perplexity
from compressjax.models import Llama, LlamaConfig
from compressjax.reporting.quality import Candidate, measure

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
    tie_embeddings=True,
)
TOKENS = np.random.default_rng(3).integers(0, 40, (3, 12)).astype(np.int32)


def params(seed: int, cfg: LlamaConfig = CONFIG):
    return Llama(cfg).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.fixture(scope="module")
def models() -> list[Candidate]:
    return [Candidate(str(seed), CONFIG, params(seed)) for seed in range(3)]


def test_one_pass_gives_what_separate_evaluations_give(models):
    seen = []
    results = measure(models, TOKENS, num_bytes=77, progress=lambda done, total: seen.append((done, total)))
    logits = LinenLogits(Llama(CONFIG))
    for model, result in zip(models, results, strict=True):
        alone = perplexity(logits, model.params, TOKENS, num_bytes=77)
        assert result.nll == pytest.approx(alone.nll, rel=1e-6)
        assert result.perplexity == pytest.approx(math.exp(result.nll))
        assert result.standard_error == pytest.approx(alone.standard_error, rel=1e-4)
        assert result.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-6)
        assert result.tokens == alone.tokens == 33
        if model is models[0]:
            assert result.kl is None and result.agreement is None
        else:
            far = divergence(logits, models[0].params, model.params, TOKENS)
            assert result.kl == pytest.approx(far.kl, rel=1e-5)
            assert result.agreement == pytest.approx(far.agreement)
    assert seen == sorted(seen) and seen[-1] == (9, 9) and len(set(seen)) == 9


def test_a_model_compared_with_itself(models):
    same = measure([models[0], models[0]], TOKENS)[1]
    assert same.kl == pytest.approx(0, abs=1e-6) and same.agreement == 1.0


def test_one_window_has_no_standard_error(models):
    assert measure(models[:1], TOKENS[:1])[0].standard_error is None


def test_refusals(models):
    other = LlamaConfig(**{**vars(CONFIG), "vocab_size": 41})
    with pytest.raises(ValueError, match="at least one model"):
        measure([], TOKENS)
    with pytest.raises(ValueError, match="vocabularies differ: 0 has 40 tokens, x 41"):
        measure([models[0], Candidate("x", other, params(0, other))], TOKENS)
    with pytest.raises(ValueError, match="exceed the context of 0, 16"):
        measure(models, np.zeros((1, 17), np.int32))
    with pytest.raises(ValueError, match="token 40 is outside the vocabulary"):
        measure(models, np.full((1, 4), 40, np.int32))
    broken = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), models[0].params)
    with pytest.raises(ValueError, match="broken returned NaN in window 0"):
        measure([models[0], Candidate("broken", CONFIG, broken)], TOKENS)
