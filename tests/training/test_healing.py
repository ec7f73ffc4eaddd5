"""Healing a small decoder of matrix product operators, on one device and on four."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from compressjax.driver import BlockInputs, block_rule
from compressjax.factorization import CompactifAI, lowrank, quantize_cores, tensorize
from compressjax.leaf import ByLayer, TensorTrain
from compressjax.models import Llama, LlamaConfig
from compressjax.ops import dense
from compressjax.quantization import RTN
from compressjax.select import weights
from compressjax.training import BlockTuning, heal, trained_part

CFG = LlamaConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
STEPS, BATCH, LENGTH = 6, 8, 9


def loss(params, tokens):
    logits = Llama(CFG).apply({"params": params}, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@pytest.fixture(scope="module")
def problem():
    """A decoder with bonds by layer in one stack and alike in another, and batches of tokens."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Llama(CFG).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)
    small = lowrank(params, {"blocks/mlp/up": CompactifAI(max_bond=6), "**": None})
    small = tensorize(small, {"blocks/mlp/down": (4, None)}, CompactifAI(dtype="float32"))
    return small, jnp.asarray(rng.integers(0, 31, (STEPS, BATCH, LENGTH)))


TX = optax.adam(optax.cosine_decay_schedule(2e-2, STEPS))


@functools.cache
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def test_cores_learn_and_nothing_else_moves(problem):
    small, batches = problem
    healed = heal(small, loss, jnp.broadcast_to(batches[:1], batches.shape), TX)
    assert healed.losses.shape == (STEPS,) and float(healed.losses[-1]) < float(healed.losses[0])
    before, after = weights(small), weights(healed.params)
    for path, old in before.items():
        new = after[path]
        if isinstance(old, TensorTrain):
            assert all(a.dtype == b.dtype == jnp.float16 for a, b in zip(old.cores, new.cores, strict=True))
            assert not np.array_equal(old.cores[0], new.cores[0])
        elif isinstance(old, ByLayer):
            for a, b in zip(old.variants, new.variants, strict=True):
                assert np.array_equal(dense(a), dense(b)) != isinstance(a, TensorTrain)
        else:
            np.testing.assert_array_equal(old, new)


def test_four_devices_heal_as_one_does(problem):
    small, batches = problem
    alone, spread = heal(small, loss, batches, TX), heal(small, loss, batches, TX, mesh=mesh())
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=2e-3)


def test_scales_of_few_bit_cores_train_and_codes_stay():
    w = jax.random.normal(jax.random.key(0), (16, 12))
    kernel = lowrank({"kernel": w}, CompactifAI(max_bond=4))
    small = quantize_cores(kernel, RTN(bits=3, group=8))
    x = jax.random.normal(jax.random.key(2), (40, 1, 16))

    def miss(params, x):
        return jnp.mean(jnp.square(x @ dense(params["kernel"]) - x @ w))

    healed = heal(small, miss, x, optax.adam(3e-3))
    old, new = small["kernel"].cores[1], healed.params["kernel"].cores[1]
    np.testing.assert_array_equal(old.codes, new.codes)
    assert old.scale.dtype == new.scale.dtype and not np.array_equal(old.scale, new.scale)
    assert float(miss(healed.params, x)) < float(miss(small, x))


def test_block_tuning_heals_blocks_of_cores_as_well():
    w = jax.random.normal(jax.random.key(0), (16, 12))
    block = lowrank({"kernel": w}, CompactifAI(max_bond=4))
    x = jax.random.normal(jax.random.key(2), (4, 2, 5, 16)) * jnp.geomspace(1.0, 0.1, 16)[None, None, None]
    inputs = BlockInputs(_product, {"x": x}, None)
    tuned = block_rule(block, BlockTuning(epochs=10, lr=2e-2), {"kernel": w}, inputs, None)
    miss = [float(jnp.sum((x @ dense(p["kernel"]) - x @ w) ** 2)) for p in (block, tuned)]
    assert miss[1] < 0.95 * miss[0]


def _product(params, carry):
    return carry["x"] @ dense(params["kernel"])


def test_other_parts_can_be_trained_instead(problem):
    small, _ = problem
    part = trained_part(small, lambda node: isinstance(node, jax.Array) and node.shape == (16,))
    assert [a.shape for a in part.floats] == [(16,)]
    built = part.build([jnp.full(16, 3.0)])
    np.testing.assert_array_equal(built["final_norm"]["scale"], jnp.full(16, 3.0))
    assert jax.tree.structure(built) == jax.tree.structure(small)
    with pytest.raises(TypeError, match="selected arrays must be floating point, got int32"):
        trained_part(small, lambda node: isinstance(node, jax.Array) and node.dtype == jnp.int32)


def test_refusals(problem):
    small, batches = problem
    with pytest.raises(ValueError, match="nothing in params is selected for training"):
        heal({"a": jnp.ones((2, 2))}, loss, batches, TX)
    with pytest.raises(ValueError, match=r"divisible by the 4 devices of 'data', got \[\(6, 3\)\]"):
        heal(small, loss, batches[:, :3], TX, mesh=mesh())
    with pytest.raises(ValueError, match="none called 'model'"):
        heal(small, loss, batches, TX, mesh=mesh(), axis="model")
    with pytest.raises(ValueError, match="batches must be arrays"):
        heal(small, loss, {}, TX)
