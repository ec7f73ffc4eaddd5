import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import (
    QSGD,
    Identity,
    MinMax,
    RandK,
    TopK,
    all_gather_mean,
    exact_mean,
    message_bytes,
    sharded_mean,
    shared_mask_mean,
    wire_bytes,
    with_feedback,
)

from .meshes import WORKERS, on_workers

KEY = jax.random.key(5)
D = 256
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(WORKERS, D)), jnp.float32)


def gathered(compressor):
    return lambda x: all_gather_mean(compressor, x, "workers", KEY)


def sharded(up, down):
    return lambda x: sharded_mean(up, down, x, "workers", KEY)


@pytest.mark.parametrize(
    "transport",
    [
        gathered(Identity()),
        sharded(Identity(), Identity()),
        lambda x: shared_mask_mean(RandK(density=1.0), x, "workers", KEY),
    ],
)
@pytest.mark.parametrize("d", [D, 37])
def test_without_loss_every_transport_gives_the_mean(transport, d):
    result = on_workers(transport)(ROWS[:, :d])
    expected = np.asarray(ROWS[:, :d]).mean(axis=0)
    for row in range(WORKERS):
        np.testing.assert_allclose(result.mean[row], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.own, ROWS[:, :d])


@pytest.mark.parametrize(
    "transport",
    [
        gathered(TopK(density=0.1)),
        sharded(MinMax(bits=4, bucket=32), MinMax(bits=4, bucket=32)),
        sharded(QSGD(), TopK()),
    ],
)
def test_all_workers_hold_the_same_bits(transport):
    result = on_workers(transport)(ROWS)
    for row in range(1, WORKERS):
        np.testing.assert_array_equal(result.mean[row], result.mean[0])
    assert np.any(result.mean[0] != np.asarray(ROWS).mean(axis=0))


def test_the_mean_of_messages_is_the_mean_of_what_each_worker_decodes_of_its_own():
    for transport in (gathered(TopK(density=0.1)), sharded(RandK(density=0.25), Identity())):
        result = on_workers(transport)(ROWS)
        np.testing.assert_allclose(result.mean[0], np.asarray(result.own).mean(axis=0), rtol=1e-5, atol=1e-6)


def test_workers_draw_masks_of_their_own_unless_they_share_one():
    own = np.asarray(on_workers(gathered(RandK(density=0.25)))(ROWS).own) != 0
    assert np.any(own[0] != own[1])
    shared = on_workers(lambda x: shared_mask_mean(RandK(density=0.25), x, "workers", KEY))(ROWS)
    masks = np.asarray(shared.own) != 0
    assert np.all(masks == masks[0])
    np.testing.assert_allclose(shared.mean[0], np.where(masks[0], 4 * np.asarray(ROWS).mean(axis=0), 0), rtol=1e-5)
    with pytest.raises(TypeError, match="only messages of RandK can be added up, got TopK"):
        shared_mask_mean(TopK(), ROWS[0], "workers", KEY)


def test_the_served_error_is_what_the_second_message_left_out():
    def run(x):
        memory = jnp.full((D // WORKERS,), 0.25)
        return sharded_mean(Identity(), TopK(density=0.1), x, "workers", KEY, server_error=memory)

    result = on_workers(run)(ROWS)
    left = np.asarray(result.server_error).reshape(-1)
    np.testing.assert_allclose(
        np.asarray(result.mean[0]) + left, np.asarray(ROWS).mean(axis=0) + 0.25, rtol=1e-5, atol=1e-6
    )


def sent(transport):
    return wire_bytes(on_workers(lambda x: transport(x).mean).lower(ROWS).compile()).always


def test_bytes_on_the_wire_are_those_of_the_messages():
    full = wire_bytes(on_workers(lambda x: exact_mean(x, "workers")).lower(ROWS).compile()).always
    assert full == 2 * 3 / 4 * D * 4
    for compressor in (TopK(density=0.05), QSGD(bits=4, bucket=64), MinMax(bits=2, bucket=64)):
        assert sent(gathered(compressor)) == 3 * message_bytes(compressor, D)
    narrow = MinMax(bits=4, bucket=64)
    both = sent(sharded(narrow, narrow))
    assert both == 2 * 3 * message_bytes(narrow, D // WORKERS)
    # 4 of 32 bits, and 8 bytes beside 64 codes: the ratio that is claimed.
    np.testing.assert_allclose(full / both, 32 / (4 + 64 / 64), rtol=1e-6)
    masked = sent(lambda x: shared_mask_mean(RandK(density=1 / 16), x, "workers", KEY))
    np.testing.assert_allclose(full / masked, 16)


def test_error_feedback_sends_everything_in_the_end():
    def run(x):
        def step(carry, t):
            memory, total = carry
            key = jax.random.fold_in(KEY, t)
            mean, memory = with_feedback(lambda v: all_gather_mean(TopK(density=0.1), v, "workers", key), x, memory)
            return (memory, total + mean), None

        return jax.lax.scan(step, (jnp.zeros_like(x), jnp.zeros_like(x)), jnp.arange(10))[0]

    memory, total = on_workers(run)(ROWS)
    asked = 10 * np.asarray(ROWS).mean(axis=0)
    np.testing.assert_allclose(np.asarray(total[0]) + np.asarray(memory).mean(axis=0), asked, rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(total[0] - asked) < np.linalg.norm(asked)


def test_the_same_under_pmap():
    mapped = jax.pmap(lambda x: all_gather_mean(TopK(density=0.1), x, "workers", KEY).mean, axis_name="workers")
    np.testing.assert_array_equal(mapped(ROWS), on_workers(gathered(TopK(density=0.1)))(ROWS).mean)
    compiled = mapped.lower(ROWS).compile()
    assert wire_bytes(compiled).always == 3 * message_bytes(TopK(density=0.1), D)
