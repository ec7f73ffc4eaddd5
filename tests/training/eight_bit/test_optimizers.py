import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax.training import eight_bit
from compressjax.training.eight_bit import BlockQ, StatePolicy, decoded_state, quantized_state

pytestmark = pytest.mark.standard_promotion("optax mixes the dtypes of moments, counts and norms")

SMALL = StatePolicy(min_size=1, block_size=32)
ADAM = eight_bit.adam_8bit(1e-2, policy=SMALL)
# Drop-in name -> (ours, optax's, number of states stored in bytes).
PAIRS = {
    "adam": (lambda **k: ADAM, optax.adam(1e-2), 2),
    "adamw": (lambda **k: eight_bit.adamw_8bit(1e-2, **k), optax.adamw(1e-2, weight_decay=1e-2), 2),
    "scale_by_adam": (eight_bit.scale_by_adam_8bit, optax.scale_by_adam(), 2),
    "sgd": (
        lambda **k: eight_bit.sgd_8bit(0.1, weight_decay=0.01, **k),
        optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9)),
        1,
    ),
    "rmsprop": (lambda **k: eight_bit.rmsprop_8bit(1e-2, **k), optax.rmsprop(1e-2, 0.99, 1e-8, eps_in_sqrt=False), 1),
    "adagrad": (lambda **k: eight_bit.adagrad_8bit(1e-2, **k), optax.adagrad(1e-2, 0.0, 1e-20), 1),
    "lion": (lambda **k: eight_bit.lion_8bit(1e-3, **k), optax.lion(1e-3, weight_decay=0.0), 1),
    "lamb": (lambda **k: eight_bit.lamb_8bit(1e-2, weight_decay=0.1, **k), optax.lamb(1e-2, weight_decay=0.1), 2),
    "lars": (lambda **k: eight_bit.lars_8bit(1.0, 0.01, **k), optax.lars(1.0, 0.01), 1),
}


def problem(seed=0):
    draw = np.random.default_rng(seed)
    return {"w": jnp.asarray(draw.normal(size=(6, 48)), jnp.float32)}


def steps(tx, count):
    """Updates of the first steps, with gradients that do not depend on them."""
    params = problem()
    state = tx.init(params)
    update, out = jax.jit(tx.update), []
    for seed in range(1, count + 1):
        updates, state = update(problem(seed), state, params)
        out.append(np.asarray(updates["w"]))
    return out, state


FEW = ("adam", "sgd", "lion", "lamb")


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in PAIRS])
def test_the_first_step_is_optaxs_and_the_next_ones_are_close(name):
    make, plain, stored = PAIRS[name]
    ours, state = steps(make(policy=SMALL), 3)
    theirs, _ = steps(plain, 3)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=3e-7, atol=0)  # the update saw the unrounded state
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, BlockQ))
    assert sum(isinstance(leaf, BlockQ) for leaf in leaves) == stored
    if name == "lion":  # signs: those of values near 0 may turn
        assert np.mean(ours[2] == theirs[2]) > 0.98
    else:
        error = np.linalg.norm(ours[2] - theirs[2]) / np.linalg.norm(theirs[2])
        assert 0 < error < 0.02


def test_adam_is_its_formula():
    (first, second), state = steps(ADAM, 2)
    g1, g2 = np.asarray(problem(1)["w"]), np.asarray(problem(2)["w"])
    m1, v1 = 0.1 * g1, 0.001 * g1**2
    np.testing.assert_allclose(first, -1e-2 * g1 / (np.abs(g1) + 1e-8), rtol=1e-4)
    # What the second step started from was m1, v1 rounded; undo it by the policy's maps.
    _, one = jax.jit(ADAM.update)(problem(1), ADAM.init(problem()), problem())
    kept = decoded_state(one, SMALL)[0]
    np.testing.assert_allclose(kept.mu["w"], m1, atol=np.abs(m1).max() * 0.0071)
    np.testing.assert_allclose(kept.nu["w"], v1, atol=v1.max() * 0.0036)
    m2, v2 = 0.9 * kept.mu["w"] + 0.1 * g2, 0.999 * kept.nu["w"] + 0.001 * g2**2
    expected = -1e-2 * (m2 / (1 - 0.9**2)) / (np.sqrt(v2 / (1 - 0.999**2)) + 1e-8)
    np.testing.assert_allclose(second, expected, rtol=2e-4)
    assert int(state.inner[0].count) == 2


def test_the_names_are_the_generic_wrapper():
    ours, state = steps(ADAM, 2)
    generic, other = steps(quantized_state(optax.adam(1e-2), SMALL), 2)
    np.testing.assert_array_equal(ours[1], generic[1])
    jax.tree.map(np.testing.assert_array_equal, state, other)


def test_lamb_has_its_trust_ratio():
    """Twice the weight is twice the step; the reference's 8-bit LAMB would not see the weight."""
    tx = eight_bit.lamb_8bit(1e-2, policy=SMALL)
    params, grads = problem(), problem(1)
    update = jax.jit(tx.update)
    once, _ = update(grads, tx.init(params), params)
    twice, _ = update(grads, tx.init(params), jax.tree.map(lambda p: 2 * p, params))
    np.testing.assert_allclose(twice["w"], 2 * once["w"], rtol=1e-6)


@pytest.mark.parametrize("stochastic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_sum_of_small_squares_needs_rounding_at_random(stochastic):
    """Ten thousand equal gradients after a larger one: rounded to the nearest code, the sum never grows."""
    fields = {"sum_of_squares"} if stochastic else set()
    policy = StatePolicy(min_size=1, block_size=64, stochastic=fields)
    tx = eight_bit.adagrad_8bit(1.0, policy=policy, key=jax.random.key(0) if stochastic else None)
    small = jnp.full((64,), 0.01).at[0].set(0.0)

    @jax.jit
    def total(first):
        _, state = tx.update(first, tx.init(first))
        state, _ = jax.lax.scan(lambda state, _: (tx.update(small, state)[1], None), state, None, length=10_000)
        return decoded_state(state, policy)[0].sum_of_squares

    sums = np.asarray(total(jnp.ones((64,)).at[0].set(10.0)))
    assert sums[0] == 100.0
    if stochastic:
        np.testing.assert_allclose(sums[1:].mean(), 1 + 10_000 * 1e-4, rtol=0.05)
    else:
        np.testing.assert_allclose(sums[1:], 1.0, rtol=0.02)
