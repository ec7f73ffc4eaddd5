import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import QSGD, BlockTopK, Compressor, Identity, MinMax, Natural, RandK, TopK, message_bytes
from compressjax.distributed.compressor import from_bytes, message_like, to_bytes, tree_bytes

KEY = jax.random.key(3)
EVERY = [
    Identity(),
    RandK(density=0.25, block=4),
    TopK(density=0.1),
    BlockTopK(density=0.1, chunk=32),
    QSGD(bits=3, bucket=32),
    MinMax(bits=4, bucket=64),
    MinMax(bits=3, bucket=32, stochastic=True),
    Natural(),
]
UNBIASED = [c for c in EVERY if c.unbiased(70) is not None]
CONTRACTIVE = [c for c in EVERY if c.contractive(70) is not None]
names = {"ids": str}


def vector(d=70, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=d) * np.exp(draw.normal(size=d)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def round_trip(compressor, x, key=KEY):
    return compressor.decode(compressor.encode(x, key), x.shape[0], key)


@pytest.mark.parametrize("compressor", EVERY, **names)
def test_messages_have_static_shapes_and_are_counted_whole(compressor):
    x = vector()
    message = jax.jit(compressor.encode)(x, KEY)
    assert isinstance(compressor, Compressor) and hash(compressor) == hash(type(compressor)(**vars(compressor)))
    like = message_like(compressor, 70)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), message) == jax.tree.map(lambda a: (a.shape, a.dtype), like)
    assert message_bytes(compressor, 70) == sum(leaf.nbytes for leaf in jax.tree.leaves(message))
    buffer = to_bytes(message)
    assert buffer.dtype == jnp.uint8 and buffer.shape == (message_bytes(compressor, 70),)
    jax.tree.map(np.testing.assert_array_equal, from_bytes(buffer, like), message)
    assert round_trip(compressor, x).shape == (70,)


@pytest.mark.parametrize("compressor", EVERY, **names)
def test_zero_is_sent_as_zero(compressor):
    assert not np.any(round_trip(compressor, jnp.zeros((70,))))


@pytest.mark.parametrize("compressor", UNBIASED, **names)
def test_the_mean_is_the_vector_and_the_second_moment_is_bounded(compressor):
    x, draws = vector(), 4000
    keys = jax.random.split(jax.random.key(1), draws)
    found = np.asarray(jax.jit(jax.vmap(lambda key: round_trip(compressor, x, key)))(keys), np.float64)
    error = found.mean(axis=0) - np.asarray(x)
    # 5 sigma for each of 70 entries.
    np.testing.assert_array_less(np.abs(error), 5 * found.std(axis=0) / np.sqrt(draws) + 1e-5 * np.abs(x))
    second = np.sum(found**2, axis=1)
    limit = compressor.unbiased(70) * float(jnp.sum(x * x))
    assert second.mean() <= limit + 4 * second.std() / np.sqrt(draws) + 1e-4 * limit


@pytest.mark.parametrize("compressor", CONTRACTIVE, **names)
def test_contractive_ones_contract_even_what_suits_them_least(compressor):
    delta = compressor.contractive(70)
    flat = jnp.ones((70,)) * jnp.where(jnp.arange(70) % 2 == 0, 1.0, -1.0)
    trip = jax.jit(jax.vmap(lambda key, x: round_trip(compressor, x, key), in_axes=(0, None)))
    for x in (vector(), flat, jnp.ones((70,)), 1.5 * flat):
        left = np.sum((np.asarray(trip(jax.random.split(KEY, 200), x)) - np.asarray(x)) ** 2, axis=1)
        bound = (1 - 1 / delta) * float(jnp.sum(x * x))
        assert left.mean() <= bound + 5 * left.std() / np.sqrt(200) + 1e-5


def test_random_entries_are_scaled_and_come_from_the_key():
    x = vector(64)
    sent = RandK(density=0.25)
    back = np.asarray(round_trip(sent, x))
    kept = back != 0
    assert kept.sum() == 16 and sent.encode(x, KEY).shape == (16,)
    np.testing.assert_allclose(back[kept], 4 * np.asarray(x)[kept], rtol=1e-6)
    assert np.any((np.asarray(round_trip(sent, x, jax.random.key(8))) != 0) != kept)
    blocks = np.asarray(round_trip(RandK(density=0.25, block=8), x)).reshape(8, 8)
    assert sorted(np.sum(blocks != 0, axis=1)) == [0] * 6 + [8] * 2


def test_the_largest_entries_are_kept_as_they_are():
    x = vector(100)
    back = np.asarray(round_trip(TopK(density=0.07), x))
    largest = np.argsort(-np.abs(np.asarray(x)))[:7]
    np.testing.assert_array_equal(np.flatnonzero(back), np.sort(largest))
    np.testing.assert_array_equal(back[largest], np.asarray(x)[largest])
    by_chunk = np.asarray(round_trip(BlockTopK(density=0.1, chunk=25), x)).reshape(4, 25)
    for row, chunk in zip(by_chunk, np.asarray(x).reshape(4, 25), strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), np.sort(np.argsort(-np.abs(chunk))[:2]))


def test_places_take_two_bytes_where_they_fit():
    assert message_bytes(TopK(k=10), 65_536) == 10 * 6
    assert message_bytes(TopK(k=10), 65_537) == 10 * 8
    assert message_bytes(BlockTopK(density=0.01, chunk=1000), 100_000) == 100 * 10 * 6


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_between_extremes_err_by_half_a_step(bits):
    x = vector(150)
    coded = MinMax(bits=bits, bucket=64)
    message = coded.encode(x, KEY)
    back = np.asarray(coded.decode(message, 150, KEY))
    unit = np.repeat(np.asarray(message.scales[:, 1]), 64)[:150]
    assert np.all(np.abs(back - np.asarray(x)) <= unit / 2 * (1 + 1e-4) + 1e-6)
    assert len(np.unique(back[:64])) <= 2**bits
    assert tree_bytes(message) == 3 * 64 * bits // 8 + 3 * 8


def test_a_constant_bucket_is_exact():
    x = jnp.full((64,), 0.3)
    np.testing.assert_array_equal(round_trip(MinMax(bits=2), x), x)


def test_natural_gives_one_of_the_two_powers_of_two_around():
    x = vector(200)
    back = np.asarray(round_trip(Natural(), x))
    ratio = np.abs(back / np.asarray(x))
    assert np.all((ratio > 0.5) & (ratio <= 2)) and np.all(np.sign(back) == np.sign(x))
    assert np.all(np.log2(np.abs(back)) % 1 == 0)
    exact = jnp.asarray([1.0, -2.0, 0.0, 2.0**-126])
    np.testing.assert_array_equal(round_trip(Natural(), exact), exact)
    assert np.all(np.isfinite(round_trip(Natural(), jnp.asarray([3.4e38, -3.4e38]))))
    assert message_bytes(Natural(), 320) == 320 + 40


def test_refusals():
    for make, message in [
        (lambda: RandK(density=0.0), r"RandK.density must be in \(0, 1\], got 0.0"),
        (lambda: RandK(density=0.5, block=0), "RandK.block must be at least 1, got 0"),
        (lambda: TopK(k=0), "TopK.k must be at least 1, got 0"),
        (lambda: TopK(k=9).encode(jnp.ones((4,)), KEY), "TopK.k=9 exceeds the length 4"),
        (lambda: BlockTopK(chunk=70_000), "chunk must be in"),
        (lambda: QSGD(bits=1), r"QSGD.bits must be in 2..8, got 1"),
        (lambda: MinMax(bits=9), r"MinMax.bits must be in 1..8, got 9"),
        (lambda: MinMax(bucket=33), "MinMax.bucket must be a positive multiple of 32, got 33"),
        (lambda: from_bytes(jnp.zeros((3,), jnp.uint8), jnp.zeros((1,))), r"buffer has shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
