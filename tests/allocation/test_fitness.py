"""Divergence as a fitness: zero for the original, top-k of everything is everything, one program for all choices."""

import dataclasses

import jax
import numpy as np
import pytest

from compressjax.allocation import EvoPress, KnapsackDP, TextFitness, allocate, assemble_dense, model_levels
from compressjax.evaluation.divergence import token_kl
from compressjax.quantization import RTN

from .models import CFG, LOGITS, decoder


@pytest.fixture(scope="module")
def levels():
    made = (*(RTN(bits=bits, group=16) for bits in (2, 3, 4)), None)
    return model_levels(decoder()[0], made, paths="blocks/mlp/*")


@pytest.fixture(scope="module")
def fitness(levels):
    params, tokens = decoder()
    data = (params, levels.dense)
    return TextFitness(logits_fn=LOGITS, params=params, assemble=assemble_dense, data=data, tokens=tokens, topk=None)


def test_the_original_is_at_no_distance(levels, fitness):
    batch = fitness.draw(40, np.random.default_rng(0))
    kept = np.full(len(levels.db.names), 3)
    assert fitness(kept, batch) == pytest.approx(0.0, abs=1e-6)
    assert fitness(np.zeros_like(kept), batch) > fitness(np.ones_like(kept), batch) > 1e-5


def test_mean_over_the_tokens_asked_for(levels, fitness):
    batch = fitness.draw(40, np.random.default_rng(0))
    assert batch.tokens.shape == (3, 1, 16) and int(batch.counted.sum()) == 15 + 15 + 8
    state = np.zeros(len(levels.db.names), np.int64)
    candidate = LOGITS(assemble_dense(fitness.data, jax.numpy.asarray(state)), batch.tokens[:, 0])
    kl = token_kl(LOGITS(fitness.params, batch.tokens[:, 0]), candidate)
    expected = np.concatenate([kl[0, :15], kl[1, :15], kl[2, :8]]).mean()
    assert fitness(state, batch) == pytest.approx(expected, rel=1e-4)


def test_all_tokens_as_top_k_is_the_whole_divergence(levels, fitness):
    state = np.zeros(len(levels.db.names), np.int64)
    whole = fitness(state, fitness.draw(32, np.random.default_rng(3)))
    every = dataclasses.replace(fitness, topk=CFG.vocab_size)
    few = dataclasses.replace(fitness, topk=8)
    assert every(state, every.draw(32, np.random.default_rng(3))) == pytest.approx(whole, rel=1e-4)
    assert 0 < few(state, few.draw(32, np.random.default_rng(3))) != pytest.approx(whole, rel=1e-2)


def test_choices_compile_nothing_anew(levels, fitness):
    from compressjax.allocation.fitness import _divergence

    batch = fitness.draw(16, np.random.default_rng(0))
    fitness(np.zeros(len(levels.db.names), np.int64), batch)
    before = _divergence._cache_size()
    for level in (1, 2):
        fitness(np.full(len(levels.db.names), level), batch)
    assert _divergence._cache_size() == before


def test_a_search_beats_the_additive_proxy_on_its_own_measure(levels, fitness):
    budget = int(levels.db.cost[:, 1].sum())
    start = allocate(levels.db, budget, KnapsackDP(), fitness)
    batch = fitness.draw(96, np.random.default_rng(9))
    seen = []
    found = allocate(
        levels.db,
        budget,
        EvoPress(generations=6, offspring=6, survivors=(2, 1), tokens=(96, 96), seed=1),
        fitness,
        start=start.state,
        progress=seen.append,
    )
    assert found.cost <= budget and len(seen) == 6 and seen[-1].judged == 6 * (6 * 96 + 3 * 96)
    # All stages judge on all tokens here, so nothing is lost from one generation to the next but the sums' last bits.
    fitnesses = np.asarray([generation.fitness for generation in seen])
    assert (np.diff(fitnesses) <= 1e-6 * fitnesses[0]).all()
    assert fitness(found.state, batch) <= fitness(start.state, batch) * (1 + 1e-5)


def test_a_search_without_a_neighbour_ends_where_it_began(levels, fitness):
    lowest = int(levels.db.cost[:, 0].sum())
    found = allocate(levels.db, lowest, EvoPress(survivors=(2, 1), tokens=(32, 32), offspring=4), fitness)
    assert not found.state.any() and found.cost == lowest


def test_refusals(levels, fitness):
    with pytest.raises(ValueError, match="asks for 97 tokens, there are 96"):
        fitness.draw(97, np.random.default_rng(0))
    with pytest.raises(ValueError, match="topk must be >= 2 or None, got 1"):
        dataclasses.replace(fitness, topk=1)
    with pytest.raises(ValueError, match=r"tokens must be \[windows"):
        dataclasses.replace(fitness, tokens=np.zeros(4, int))
    with pytest.raises(ValueError, match="pass a fitness"):
        allocate(levels.db, 10**9, EvoPress())
    with pytest.raises(ValueError, match="the budget is 3"):
        allocate(levels.db, 3, EvoPress(), fitness)
