"""The loop on a linear model, whose best fit is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax.training import BlockTuning, reconstruct
from compressjax.training.reconstruction import split_chunks

CHUNKS, ROWS, TOKENS, WIDTH, OUT = 6, 2, 5, 4, 3


def apply(trainable, frozen, chunk):
    return chunk["x"] @ trainable["w"] + frozen["offset"]


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (CHUNKS, ROWS, TOKENS, WIDTH))
    true = jax.random.normal(keys[1], (WIDTH, OUT))
    mask = jax.random.bernoulli(keys[2], 0.7, x.shape[:-1])
    return {"w": jnp.zeros((WIDTH, OUT))}, {"offset": jnp.ones((1, 1, OUT))}, {"x": x}, x @ true + 1, mask, true


@functools.partial(jax.jit, static_argnames="cfg")
def fit(trainable, frozen, inputs, targets, mask, key, *, cfg, rates=0.1):
    return reconstruct(apply, trainable, frozen, inputs, targets, mask, cfg, rates=rates, key=key)


def test_finds_the_true_weight_and_leaves_out_masked_tokens(problem):
    trainable, frozen, inputs, targets, mask, true = problem
    spoiled = jnp.where(mask[..., None], targets, 1e6)
    cfg = BlockTuning(steps=300, schedule="cosine")
    out = fit(trainable, frozen, inputs, spoiled, mask, jax.random.key(1), cfg=cfg)
    np.testing.assert_allclose(out.trainable["w"], true, atol=1e-2)
    assert out.losses.shape == (300,) and out.losses[-1] < 1e-3 * out.losses[0]


def test_is_adam_on_the_mean_over_unmasked_entries(problem):
    trainable, frozen, inputs, targets, mask, _ = problem
    cfg = BlockTuning(steps=4, batch=4, schedule="constant", weight_decay=0.1)
    out = fit(trainable, frozen, inputs, targets, mask, None, cfg=cfg)

    def loss(w, ids):
        miss = (apply(w, frozen, {"x": inputs["x"][ids]}) - targets[ids]) ** 2
        return jnp.sum(miss * mask[ids][..., None]) / (jnp.sum(mask[ids]) * OUT)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        adam = optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1, cfg.b1, cfg.b2, cfg.eps))
        w, state, visits = trainable, adam.init(trainable), list(range(CHUNKS)) * 3
        for step in range(4):
            ids = np.asarray(visits[step * 4 : step * 4 + 4])
            value, gradient = jax.value_and_grad(loss)(w, ids)
            np.testing.assert_allclose(out.losses[step], value, rtol=1e-5)
            updates, state = adam.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(out.trainable["w"], w["w"], rtol=1e-4, atol=1e-6)


def test_held_out_chunks_are_not_trained_on_and_choose_the_state(problem):
    trainable, frozen, inputs, targets, _, _ = problem
    train, held = split_chunks(CHUNKS, 0.4)
    assert len(held) == 2 and sorted([*train, *held]) == list(range(CHUNKS))
    # Held-out targets contradict the others: training can only make them worse, so the first state is the best.
    contrary = targets.at[held].set(frozen["offset"])
    cfg = BlockTuning(epochs=9, held_out=0.4, patience=2)
    out = fit(trainable, frozen, inputs, contrary, None, None, cfg=cfg)
    np.testing.assert_array_equal(out.trainable["w"], trainable["w"])
    taken = int(jnp.sum(jnp.isfinite(out.losses)))
    assert taken == 2 * len(train) < out.losses.size == 9 * len(train)
    assert int(jnp.sum(jnp.isfinite(out.held_out))) == 3 and out.held_out[0] == 0
    kept = fit(trainable, frozen, inputs, targets, None, None, cfg=cfg)
    np.testing.assert_allclose(jnp.nanmin(kept.held_out), kept.held_out[jnp.isfinite(kept.held_out)][-1])


def test_every_part_has_its_own_rate_and_rate_zero_changes_nothing(problem):
    _, frozen, inputs, targets, _, _ = problem
    parts = {"w": jnp.zeros((WIDTH, OUT)), "still": jnp.ones((2,))}
    cfg = BlockTuning(epochs=1)
    out = fit(parts, frozen, inputs, targets, None, None, cfg=cfg, rates={"w": 0.0, "still": 1.0})
    np.testing.assert_array_equal(out.trainable["w"], parts["w"])
    assert jnp.sum(jnp.abs(fit(parts, frozen, inputs, targets, None, None, cfg=cfg).trainable["w"])) > 0


def test_no_steps_no_change(problem):
    out = fit(*problem[:5], None, cfg=BlockTuning(epochs=0))
    np.testing.assert_array_equal(out.trainable["w"], problem[0]["w"])
    assert out.losses.size == 0


def test_one_chunk_is_never_held_out():
    train, held = split_chunks(1, 0.5)
    assert list(train) == [0] and not len(held)


def test_refuses_what_does_not_fit(problem):
    trainable, frozen, inputs, targets, mask, _ = problem
    cfg = BlockTuning()
    with pytest.raises(ValueError, match=r"trainable must hold float32 arrays, got \['int32'\]"):
        reconstruct(apply, {"w": jnp.zeros((4, 3), jnp.int32)}, frozen, inputs, targets, None, cfg)
    with pytest.raises(ValueError, match="got none at all"):
        reconstruct(apply, {}, frozen, inputs, targets, None, cfg)
    with pytest.raises(ValueError, match=r"inputs must have 5 chunks as targets have, got \[6\]"):
        reconstruct(apply, trainable, frozen, inputs, targets[:5], None, cfg)
    with pytest.raises(ValueError, match="mask must be"):
        reconstruct(apply, trainable, frozen, inputs, targets, mask[..., :2], cfg)
    with pytest.raises(ValueError, match="targets must be"):
        reconstruct(apply, trainable, frozen, inputs, targets[:0], None, cfg)
