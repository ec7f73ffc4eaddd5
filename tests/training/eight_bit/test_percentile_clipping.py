import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.training.eight_bit import percentile_clipping


def run(norms, **options):
    """Norms after clipping of a row of gradients with the given norms."""
    tx = percentile_clipping(**options)
    state = tx.init(jnp.zeros((2,)))
    update = jax.jit(tx.update)
    out = []
    for norm in norms:
        clipped, state = update(jnp.asarray([0.6, 0.8]) * norm, state)
        out.append(float(jnp.linalg.norm(clipped)))
    return np.asarray(out)


def oracle(norms, percentile, history):
    kept = [norms[0]] * history
    out = []
    for step, norm in enumerate(norms):
        kept[step % history] = norm
        out.append(min(norm, sorted(kept)[min(percentile * history // 100, history - 1)]))
    return np.asarray(out)


@pytest.mark.parametrize("percentile, history", [(5, 100), (50, 4), (100, 4), (0, 3)])
def test_against_a_loop(percentile, history):
    norms = np.random.default_rng(0).lognormal(size=12)
    found = run(norms, percentile=percentile, history=history)
    np.testing.assert_allclose(found, oracle(norms, percentile, history), rtol=1e-5)


def test_a_burst_is_cut_down_to_what_came_before():
    clipped = run([1.0] * 5 + [1000.0])
    np.testing.assert_allclose(clipped, 1.0, rtol=1e-5)


def test_tensors_are_clipped_one_by_one_and_keep_their_dtype():
    tx = percentile_clipping()
    params = {"a": jnp.ones((2,), jnp.bfloat16), "b": jnp.ones((3,))}
    _, state = tx.update(params, tx.init(params))
    again, _ = tx.update({"a": params["a"], "b": params["b"] * 10}, state)
    assert again["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again["a"], params["a"])
    np.testing.assert_allclose(again["b"], params["b"], rtol=1e-6)


def test_a_zero_gradient_stays_zero():
    np.testing.assert_array_equal(run([0.0, 0.0]), 0.0)


def test_refusals():
    with pytest.raises(ValueError, match=r"percentile must be in 0..100, got 101"):
        percentile_clipping(101)
    with pytest.raises(ValueError, match="history must be at least 1, got 0"):
        percentile_clipping(history=0)
