"""Levels of a whole model: exact costs, and the same model whether searched dense or built from leaves."""

import jax
import numpy as np
import pytest

from compressjax.allocation import Uniform, allocate, assemble_dense, model_levels
from compressjax.calibration import Hessian, calibrate
from compressjax.factorization import SVD
from compressjax.leaf import ByLayer
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.ops import dense, nbits
from compressjax.quantization import GPTQ, RTN, quantize
from compressjax.select import weights
from compressjax.sequential import quantize_blockwise

from .models import CFG, LOGITS, decoder

LEVELS = tuple(RTN(bits=bits, group=16) for bits in (2, 3, 4))


@pytest.fixture(scope="module")
def model():
    return decoder()


@pytest.fixture(scope="module")
def levels(model):
    return model_levels(model[0], LEVELS, paths="blocks/**")


def test_costs_are_the_bits_of_the_model_that_is_built(model, levels):
    rng = np.random.default_rng(0)
    state = rng.integers(0, 3, len(levels.db.names))
    small = levels.model(state)
    assert len(levels.db.names) == 7 * CFG.num_layers
    kernels = [w for path, w in weights(small).items() if path.startswith("blocks/") and path.endswith("kernel")]
    indices = sum(2 * 32 * CFG.num_layers for w in kernels if isinstance(w, ByLayer))
    assert indices > 0
    assert levels.db.total_cost(state) == sum(map(nbits, kernels)) - indices


def test_the_dense_candidate_is_the_model_that_is_built(model, levels):
    state = np.random.default_rng(1).integers(0, 3, len(levels.db.names))
    candidate = jax.jit(assemble_dense)((levels.params, levels.dense), state)
    jax.tree.map(np.testing.assert_array_equal, candidate, dense(levels.model(state)))
    np.testing.assert_allclose(LOGITS(levels.model(state), model[1]), LOGITS(candidate, model[1]), atol=2e-4, rtol=1e-4)


def test_one_level_everywhere_is_the_plain_method(model, levels):
    chosen = allocate(levels.db, int(levels.db.cost[:, 1].sum()), Uniform())
    assert (chosen.state == 1).all()
    expected = quantize(model[0], {"blocks/**": LEVELS[1]})
    jax.tree.map(np.testing.assert_array_equal, levels.model(chosen.state), expected)


def test_choices_rebuild_the_same_model_block_by_block(model, levels):
    params, tokens = model
    state = np.random.default_rng(2).integers(0, 3, len(levels.db.names))
    again, _ = quantize_blockwise(LlamaBlocks(CFG), params, tokens, LEVELS[0], choices=levels.choices(state))
    jax.tree.map(np.testing.assert_array_equal, dense(again), dense(levels.model(state)))


def test_errors_are_relative_output_errors_over_mixed_families(model):
    params, tokens = model
    hidden = jax.tree_util.Partial(lambda p, t: Llama(CFG).apply({"params": p}, t))
    stats = calibrate(hidden, params, [tokens], Hessian(), paths="blocks/**")
    mixed = model_levels(params, (SVD(rank=4), GPTQ(bits=4, group=16), None), stats=stats, paths="blocks/mlp/down")
    assert (mixed.db.error[:, 2] == 0).all() and (mixed.db.error[:, 0] > mixed.db.error[:, 1]).all()
    kernel = np.asarray(params["blocks"]["mlp"]["down"]["kernel"][1], np.float64)
    small = np.asarray(dense(mixed.leaves["blocks/mlp/down/kernel"][0])[1], np.float64)
    h = np.asarray(stats["blocks/mlp/down/kernel"].xtx[1], np.float64)
    off = kernel - small
    assert mixed.db.error[1, 0] == pytest.approx(np.trace(off.T @ h @ off) / np.trace(kernel.T @ h @ kernel), rel=1e-4)
    built = mixed.model([0, 1, 2])
    assert isinstance(built["blocks"]["mlp"]["down"]["kernel"], ByLayer)


def test_levels_must_rise_in_bits(model):
    with pytest.raises(ValueError, match="levels must rise in bits"):
        model_levels(model[0], LEVELS[::-1], paths="blocks/mlp/up")
    with pytest.raises(ValueError, match="at least two method configs, got 1"):
        model_levels(model[0], LEVELS[:1])
