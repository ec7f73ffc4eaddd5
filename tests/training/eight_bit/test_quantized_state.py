import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from compressjax.training.eight_bit import (
    BlockQ,
    StatePolicy,
    adam_8bit,
    decoded_state,
    quantized_state,
    scale_by_adam_8bit,
    state_nbytes,
    state_shardings,
)

pytestmark = pytest.mark.standard_promotion("optax.adam mixes the dtypes of its moments")

SMALL = StatePolicy(min_size=1, block_size=32)
ADAM = adam_8bit(1e-2, policy=SMALL)  # one transform, so that it is compiled once


def tree(seed, dtype=jnp.float32, shape=(4, 128)):
    draw = np.random.default_rng(seed)
    return {"a": {"kernel": jnp.asarray(draw.normal(size=shape), dtype)}, "b": jnp.asarray(draw.normal(size=4), dtype)}


def run(tx, count=3, params=None, state=None, first=1):
    params = tree(0) if params is None else params
    state = tx.init(params) if state is None else state
    update, updates = jax.jit(tx.update), None
    for seed in range(first, first + count):
        updates, state = update(tree(seed, params["b"].dtype), state, params)
    return updates, state


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_float32_everywhere_is_the_inner_transform():
    updates, state = run(quantized_state(optax.adam(1e-2), StatePolicy(overrides=[("", "f32")])))
    plain, inner = run(optax.adam(1e-2))
    equal(updates, plain)
    equal(state.inner, inner)


def test_the_state_starts_at_zero_and_small_leaves_stay():
    tx = scale_by_adam_8bit(policy=StatePolicy(min_size=512))
    state = tx.init(tree(0))
    assert isinstance(state.inner.mu["a"]["kernel"], BlockQ) and isinstance(state.inner.mu["b"], jax.Array)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(decoded_state(state, StatePolicy(min_size=512))))


def test_the_bytes_really_fall():
    params = {"w": jnp.zeros((64, 1024))}
    ours, theirs = (state_nbytes(tx.init(params)) for tx in (adam_8bit(1e-3), optax.adam(1e-3)))
    assert ours == 2 * 64 * 1024 * (1 + 4 / 256) + 4
    assert ours / theirs < 0.255
    held = jax.tree.leaves(adam_8bit(1e-3).init(params))
    assert sum(leaf.nbytes for leaf in held) == ours  # of live arrays, not on paper


def test_bfloat16_parameters_have_float32_arithmetic_and_bfloat16_updates():
    params = tree(0, jnp.bfloat16)
    updates, state = run(adam_8bit(1e-2, policy=StatePolicy(min_size=512)), params=params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert state.inner[0].mu["b"].dtype == jnp.float32
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), tree(1, jnp.bfloat16))
    _, first = run(adam_8bit(1e-2, policy=StatePolicy(min_size=512)), 1, params)
    np.testing.assert_allclose(first.inner[0].mu["b"], 0.1 * wide["b"], rtol=1e-6)


def test_a_non_finite_gradient_leaves_its_parameter_alone():
    policy = StatePolicy(min_size=512, block_size=32, skip_nonfinite=True)
    tx = adam_8bit(1e-2, policy=policy)
    params = tree(0)
    _, state = run(tx, 2, params)
    bad = tree(9)
    bad["a"]["kernel"] = bad["a"]["kernel"].at[1, 7].set(jnp.nan)
    bad["b"] = bad["b"].at[2].set(jnp.inf)
    updates, state = jax.jit(tx.update)(bad, state, params)
    assert updates["a"]["kernel"][1, 7] == 0 and updates["b"][2] == 0
    kept = decoded_state(state, policy)[0]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(kept))
    for field in (kept.mu, kept.nu):
        assert field["a"]["kernel"][1, 7] == 0 and field["b"][2] == 0
    assert np.sum(np.asarray(updates["a"]["kernel"]) == 0) == 1


def test_a_second_moment_that_was_rounded_away_can_be_floored():
    """m is stored, v is not, g = 0: Adam divides by eps. The floor bounds the step by that of the least code."""

    # Squares span twice the decades: a gradient of 1e-4 beside 1 has a first moment, but no second.
    grads = jnp.full((256,), 1e-4).at[0].set(1.0)
    plain = StatePolicy(min_size=1)
    tx = adam_8bit(1.0, policy=plain)
    _, state = jax.jit(tx.update)(grads, tx.init(grads))
    m = float(decoded_state(state, plain)[0].mu[1])
    assert m > 0 and decoded_state(state, plain)[0].nu[1] == 0

    def step(policy):
        return float(adam_8bit(1.0, policy=policy).update(jnp.zeros((256,)), state)[0][1])

    hat = 0.9 * m / (1 - 0.9**2), 0.999 * 0.001 * 3.25e-7 / (1 - 0.999**2)
    np.testing.assert_allclose(step(plain), -hat[0] / 1e-8, rtol=1e-3)  # |m| / eps: finite, and enormous
    np.testing.assert_allclose(step(StatePolicy(min_size=1, floor_zeros={"nu"})), -hat[0] / np.sqrt(hat[1]), rtol=1e-3)


def test_rounding_at_random_needs_a_key():
    with pytest.raises(ValueError, match=r"StatePolicy.stochastic=\['nu'\] needs a key"):
        adam_8bit(1e-2, policy=StatePolicy(stochastic={"nu"}))


@pytest.mark.slow
def test_rounding_at_random_changes_with_its_key():
    policy = StatePolicy(min_size=1, stochastic={"nu"})
    tx = scale_by_adam_8bit(policy=policy, key=jax.random.key(0))
    begin = tx.init(tree(0))
    starts = [begin, begin, begin._replace(key=jax.random.key(1))]
    states = [run(tx, 1, state=start)[1] for start in starts]
    equal(states[0].inner, states[1].inner)
    codes = [state.inner.nu["a"]["kernel"].codes for state in states]
    assert np.any(codes[0] != codes[2])
    equal(states[0].inner.mu, states[2].inner.mu)
    assert jax.random.key_data(states[0].key).tolist() != jax.random.key_data(begin.key).tolist()


def test_state_survives_a_checkpoint_bit_for_bit(tmp_path):
    _, state = run(ADAM, 2)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    equal(restored, state)
    equal(run(ADAM, 2, state=restored, first=3)[0], run(ADAM, 4)[0])


@pytest.mark.slow
def test_gradient_accumulation_of_optax():
    tx = optax.MultiSteps(ADAM, every_k_schedule=2)
    params = tree(0)
    state, update = tx.init(params), jax.jit(tx.update)
    halfway, state = update(tree(1), state, params)
    full, _ = update(tree(2), state, params)
    assert not np.any(halfway["b"])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, tree(1), tree(2))
    expected, _ = jax.jit(ADAM.update)(mean, ADAM.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), full, expected)


def mesh():
    return jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def test_shardings_carry_over_and_change_no_bit():
    params = tree(0)
    grid = mesh()
    shardings = {
        "a": {"kernel": NamedSharding(grid, PartitionSpec("x", "y"))},
        "b": NamedSharding(grid, PartitionSpec()),
    }
    tx = ADAM
    placed = state_shardings(jax.eval_shape(tx.init, params), params, shardings)
    sharded = jax.device_put(params, shardings)
    state = jax.jit(tx.init, out_shardings=placed)(sharded)
    moment = state.inner[0].mu["a"]["kernel"]
    assert moment.codes.sharding.shard_shape(moment.codes.shape) == (2, 64)
    assert moment.absmax.sharding.shard_shape(moment.absmax.shape) == (2, 2)
    update = jax.jit(tx.update, out_shardings=(shardings, placed))
    for seed in (1, 2):
        updates, state = update(jax.device_put(tree(seed), shardings), state, sharded)
    expected, alone = run(tx, 2)
    equal(updates, expected)
    equal(state.inner, alone.inner)


def test_shard_map_over_rows_changes_no_bit():
    tx = scale_by_adam_8bit(policy=SMALL)
    grid = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.float32)

    def two(grads):
        _, state = tx.update(grads, tx.init(grads))
        return tx.update(grads * 0.3, state)[0]

    spec = PartitionSpec("x")
    split = jax.jit(jax.shard_map(two, mesh=grid, in_specs=spec, out_specs=spec))(grads)
    np.testing.assert_array_equal(split, jax.jit(two)(grads))


def test_scales_that_cannot_be_divided_are_replicated():
    params = {"w": jnp.zeros((4, 96))}  # 3 blocks of 32 over 2 devices
    tx = scale_by_adam_8bit(policy=SMALL)
    placed = state_shardings(
        jax.eval_shape(tx.init, params), params, {"w": NamedSharding(mesh(), PartitionSpec(None, "y"))}
    )
    moment = placed.inner.mu["w"]
    assert moment.codes.spec == PartitionSpec(None, "y") and moment.absmax.spec == PartitionSpec()


def test_a_state_of_other_parameters_is_refused():
    tx = scale_by_adam_8bit(policy=SMALL)
    state = tx.init(tree(0))
    other = tree(1)
    other["a"]["kernel"] = other["a"]["kernel"][:, :64]
    with pytest.raises(ValueError, match=r"'mu/a/kernel' has shape \(4, 128\), its gradient \(4, 64\)"):
        tx.update(other, state)
    with pytest.raises(ValueError, match="the optimizer state has 'mu/a/kernel', but the gradients have only"):
        tx.update({"z": other["a"], "b": other["b"]}, state)
    keeps = scale_by_adam_8bit(policy=StatePolicy())
    with pytest.raises(ValueError, match="codes at 'mu/a/kernel', which the policy keeps in float32"):
        keeps.update(tree(1), state)


def test_integers_are_not_rounded():
    with pytest.raises(TypeError, match="the policy stores 'count' as 'signed', but it holds int32"):
        scale_by_adam_8bit(policy=StatePolicy(overrides=[("count", "signed")])).init(tree(0))
