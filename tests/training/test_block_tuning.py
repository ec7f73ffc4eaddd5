"""Block tuning on a small decoder: floats move, integers do not, and what is stored is never worse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.driver import BlockInputs, block_rule, wants_original
from compressjax.leaf import Affine
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.quantization import RTN, DecoupleQ, quantize
from compressjax.select import weights
from compressjax.sequential import quantize_blockwise
from compressjax.training import BlockTuning, tune_block
from compressjax.training.block_tuning import trained_arrays

CFG = LlamaConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    qkv_bias=True,
)
TUNING = BlockTuning(epochs=5, lr=1e-2)
WILD = BlockTuning(epochs=1, lr=50.0, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole block, as the block-sequential driver hands it over."""

    def __call__(self, block, carry):
        model = LlamaBlocks(CFG)
        for stage in model.stages:
            _, carry = stage.advance(block, carry)
        return model.finish(block, carry)


@pytest.fixture(scope="module")
def model():
    tokens = jax.random.randint(jax.random.key(1), (6, 10), 0, 31)
    params = jax.jit(Llama(CFG).init)(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda a: a * 6 if a.ndim == 3 else a, params), tokens


@pytest.fixture(scope="module")
def block(model):
    """A block, its rounded form, its inputs ``[3, 2, 10, 16]`` and other inputs."""
    params, tokens = model
    dense_block = jax.tree.map(lambda a: a[0], params["blocks"])
    x = params["embed"]["embedding"][tokens].reshape(3, 2, 10, -1)
    mask = jnp.ones((3, 2, 10), bool).at[:, :, -2:].set(False)
    drift = 0.1 * jax.random.normal(jax.random.key(2), x.shape) * jnp.std(x)
    return dense_block, quantize(dense_block, RTN(bits=2, group=8)), {"x": x, "mask": mask}, {"x": x + drift}


def tuned(block, cfg, key=None):
    dense_block, rounded, now, original = block
    return tune_block(rounded, dense_block, now, original, key, run=Run(), cfg=cfg)


@jax.jit
def mean_error(params, dense_block, chunk, source):
    miss = (Run()(params, chunk) - Run()(dense_block, source)) ** 2
    return jnp.mean(miss[:, :-2])


def loss(params, block, original=False):
    dense_block, _, now, other = block
    chunks = [jax.tree.map(lambda a, i=i: a[i], (now, other if original else now)) for i in range(3)]
    return sum(float(mean_error(params, dense_block, *pair)) for pair in chunks) / 3


def test_the_stored_block_is_better_and_its_integers_are_the_same(block):
    new, report = tuned(block, TUNING)
    assert bool(report.kept) and report.after < 0.9 * report.before
    np.testing.assert_allclose([report.before, report.after], [loss(block[1], block), loss(new, block)], rtol=1e-3)
    changed = set()
    for path, old in weights(block[1]).items():
        now = weights(new)[path]
        if isinstance(old, Affine):
            np.testing.assert_array_equal(now.codes, old.codes)
            np.testing.assert_array_equal(now.zero, old.zero)
            assert now.scale.dtype == jnp.float16
            changed |= {path} if bool(jnp.any(now.scale != old.scale)) else set()
        elif bool(jnp.any(now != old)):
            changed.add(path)
    kernels = {p for p, w in weights(block[1]).items() if isinstance(w, Affine)}
    assert changed == kernels | {"attn_norm/scale", "mlp_norm/scale"}


def test_which_arrays_are_trained(block):
    norms = ["attn_norm/scale", "mlp_norm/scale"]
    assert sorted(trained_arrays(block[1], BlockTuning())) == norms
    assert trained_arrays(block[1], BlockTuning(norms=False)) == []
    biases = [f"attn/{name}/bias" for name in "kqv"]
    assert sorted(trained_arrays(block[1], BlockTuning(biases=True))) == sorted(biases + norms)


def test_a_block_that_would_get_worse_is_kept_as_it_was(block):
    new, report = tuned(block, WILD)
    assert not bool(report.kept) and report.after == report.before
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(block[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_original_targets_are_those_of_the_other_inputs(block):
    cfg = dataclasses.replace(TUNING, target="original", lr_unit="absolute", lr=1e-3, held_out=0.3)
    assert wants_original(cfg) and not wants_original(TUNING)
    new, report = tuned(block, cfg, jax.random.key(3))
    assert report.held_out.shape == (6,)
    np.testing.assert_allclose(report.before, loss(block[1], block, original=True), rtol=1e-3)
    assert loss(new, block, original=True) < loss(block[1], block, original=True)
    with pytest.raises(ValueError, match="needs the uncompressed network's inputs"):
        tune_block(block[1], block[0], block[2], None, None, run=Run(), cfg=cfg)


@pytest.mark.slow
def test_the_driver_runs_it_after_any_method(model):
    params, tokens = model
    method = RTN(bits=2, group=8)
    plain, new = (
        quantize_blockwise(LlamaBlocks(CFG), params, tokens, method, tuning=t, batch=2)[0]["blocks"]["mlp"]["up"]
        for t in (None, TUNING)
    )
    np.testing.assert_array_equal(plain["kernel"].codes, new["kernel"].codes)
    assert jnp.any(plain["kernel"].scale != new["kernel"].scale)


def test_a_method_may_bring_it(block):
    dense_block, rounded, now, original = block
    method = DecoupleQ(tuning=TUNING)
    by_method = block_rule(rounded, method, dense_block, BlockInputs(Run(), now, original), None)
    for a, b in zip(jax.tree.leaves(by_method), jax.tree.leaves(tuned(block, TUNING)[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_blocks_of_one_structure_compile_once(block):
    dense_block, rounded, now, original = block
    tuned(block, TUNING)
    count = tune_block._cache_size()
    other = jax.tree.map(lambda a: a + a if a.dtype == jnp.float16 else a, rounded)
    block_rule(other, TUNING, dense_block, BlockInputs(Run(), now, original), None)
    assert tune_block._cache_size() == count


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": -1}, "BlockTuning.epochs must be >= 0"),
        ({"steps": -1}, "steps must be None or >= 0"),
        ({"batch": 0}, "batch must be >= 1"),
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"b2": 1.0}, "b2 must be in"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"held_out": 1.0}, "held_out must be in"),
        ({"patience": 2}, "patience needs held_out"),
        ({"target": "both"}, "target must be one of"),
        ({"lr_unit": "percent"}, "lr_unit must be one of"),
        ({"schedule": "linear"}, "schedule must be"),
    ],
)
def test_refuses_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        BlockTuning(**wrong)


def test_refuses_a_block_with_nothing_to_train(block):
    with pytest.raises(ValueError, match="neither compressed weights nor norms"):
        tune_block(block[0], block[0], block[2], None, None, run=Run(), cfg=BlockTuning(norms=False))
