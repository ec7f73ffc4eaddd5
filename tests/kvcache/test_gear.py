"""GEAR's three parts, each against an oracle, and together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import GEAR, cache_bytes, kv_compress, materialize
from compressjax.kvcache.extremes import outliers
from compressjax.kvcache.gear import gear_base, gear_compress, gear_decompress
from compressjax.kvcache.low_rank_fit import low_rank
from compressjax.kvcache.packed import pack_groups, unpack_groups
from compressjax.ops import nbits

B, K, N, D = 2, 2, 64, 32
EVERY = jnp.ones((B, N), bool)
compress = functools.partial(jax.jit, static_argnames=("kind", "cfg", "rank"))(gear_compress)
decompress = functools.partial(jax.jit, static_argnames=("kind", "cfg", "width"))(gear_decompress)
fit = functools.partial(jax.jit, static_argnames=("rank", "iters", "dtype"))(low_rank)


def draw(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, K, N, D)), jnp.float32)


def miss(x, kind, cfg, rank):
    block = compress(x, kind=kind, cfg=cfg, rank=rank, keep=EVERY)
    return np.asarray(decompress(block, kind=kind, cfg=cfg, width=D) - x)


@pytest.mark.parametrize("kind", ["key", "value"])
def test_without_fit_and_outliers_it_is_the_plain_rounding(kind):
    cfg, x = GEAR(group=32, sparsity=0.0, rank=0, rank_decode=0), draw()
    axis = "channel" if kind == "key" else "token"
    want = unpack_groups(pack_groups(x, axis, bits=2, group=32), axis, bits=2)
    got = decompress(compress(x, kind=kind, cfg=cfg, rank=0, keep=EVERY), kind=kind, cfg=cfg, width=D)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["key", "value"])
def test_outliers_are_exact_and_the_others_within_half_a_step(kind):
    cfg, x = GEAR(base="kcvt", sparsity=0.13, rank=0, rank_decode=0), np.asarray(draw())
    block = compress(x, kind=kind, cfg=cfg, rank=0, keep=EVERY)
    error = np.abs(np.asarray(gear_base(block, kind, cfg, D)) - x)
    vectors = x.swapaxes(-1, -2) if kind == "key" else x.swapaxes(1, 2).reshape(B, N, K * D)
    wrong = error.swapaxes(-1, -2) if kind == "key" else error.swapaxes(1, 2).reshape(B, N, K * D)
    count = outliers(0.13, vectors.shape[-1])
    order = np.argsort(vectors, axis=-1)
    extreme = np.concatenate([order[..., :count], order[..., -count:]], axis=-1)
    np.testing.assert_array_equal(np.sort(block.at, -1), np.sort(extreme, -1))
    np.testing.assert_array_equal(np.take_along_axis(wrong, extreme, -1), 0)
    inner = np.take_along_axis(vectors, order[..., count:-count], -1)
    step = (inner.max(-1) - inner.min(-1)) / 3
    assert (wrong <= 0.5 * step[..., None] * 1.01 + 2e-3).all()


def test_outliers_under_ties_are_never_more():
    cfg = GEAR(base="kcvt", sparsity=0.13, rank=0, rank_decode=0)
    block = compress(jnp.zeros((B, K, N, D)), kind="key", cfg=cfg, rank=0, keep=EVERY)
    places = np.sort(np.asarray(block.at), axis=-1)
    assert places.shape[-1] == 2 * outliers(0.13, N) and (np.diff(places.astype(int), axis=-1) > 0).all()


def test_everything_an_outlier_and_full_rank_lose_nothing():
    x = draw()
    all_outliers = GEAR(base="kcvt", sparsity=1 - 1e-11, rank=0, rank_decode=0)
    np.testing.assert_array_equal(miss(x, "key", all_outliers, 0), 0)
    # A full-rank fit is exact up to what 16-bit factors hold.
    assert np.abs(miss(x, "value", GEAR(group=32, sparsity=0.0, rank=32), 32)).max() < 2e-3


def test_each_part_helps_and_both_help_most():
    """Keys with a large channel and a few spikes, over a low-rank part."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, K, N, 3)) @ rng.standard_normal((B, K, 3, D)) + 0.3 * rng.standard_normal((B, K, N, D))
    x[..., ::7, 5] += 8 * rng.standard_normal((B, K, 10))
    x = jnp.asarray(x, jnp.float32)
    error = {
        (rank, sparsity): float((miss(x, "key", GEAR(group=32, sparsity=sparsity, rank=rank), rank) ** 2).mean())
        for rank in (0, 4)
        for sparsity in (0.0, 0.07)
    }
    assert error[4, 0.07] < error[4, 0.0] < error[0, 0.0]
    assert error[4, 0.07] < error[0, 0.07] < error[0, 0.0]


def test_spikes_stretch_no_range():
    """A plain grid with two spikes in a channel: exact once they are out of the way, far off with them."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, (B, K, N, D)), jnp.float32).at[:, :, 3, :].set(300.0).at[:, :, 9, :].set(-300.0)
    without = GEAR(base="kcvt", sparsity=0.0, rank=0, rank_decode=0)
    with_them = GEAR(base="kcvt", sparsity=2 / N, rank=0, rank_decode=0)
    assert np.abs(miss(x, "key", with_them, 0)).max() < 2e-3
    assert np.abs(miss(x, "key", without, 0)).mean() > 5


def test_the_fit_is_near_the_best_and_never_worse_with_rank():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((20, N, D)))[0]
    right = np.linalg.qr(rng.standard_normal((20, D, D)))[0]
    spectrum = 0.6 ** np.arange(D)
    e = ((left * spectrum) @ right.swapaxes(-1, -2)).astype(np.float32)
    last = np.inf
    for rank in (1, 2, 4):
        a, b = fit(jnp.asarray(e), rank=rank, iters=3, dtype="float32")
        rest = np.linalg.norm(e - np.asarray(a) @ np.asarray(b).swapaxes(-1, -2), axis=(-2, -1))
        best = np.sqrt((spectrum[rank:] ** 2).sum())
        # The start is one random draw, so a few spectra are met less well.
        assert np.median(rest) < 1.03 * best and rest.mean() < 1.1 * best and (rest < last).all()
        np.testing.assert_allclose(
            np.asarray(a).swapaxes(-1, -2) @ np.asarray(a), np.tile(np.eye(rank), (20, 1, 1)), atol=1e-5
        )
        last = rest


def test_no_error_gives_no_nan():
    a, b = fit(jnp.zeros((2, N, D)), rank=4, iters=3, dtype="float16")
    assert bool(jnp.all(jnp.isfinite(a))) and not bool(jnp.any(b))


def test_keys_along_tokens_are_values_along_channels():
    """With one head, the per-channel path on X is the per-token path on its transpose."""
    cfg = GEAR(base="kcvt", sparsity=0.13, rank=4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, N, N)), jnp.float32)
    keep = jnp.ones((1, N), bool)
    key, value = (
        decompress(compress(y, kind=kind, cfg=cfg, rank=0, keep=keep), kind=kind, cfg=cfg, width=N)
        for y, kind in ((x, "key"), (jnp.swapaxes(x, 2, 3), "value"))
    )
    np.testing.assert_array_equal(key, jnp.swapaxes(value, 2, 3))


def test_heads_are_independent():
    cfg, x = GEAR(group=32, sparsity=0.07), draw()
    swapped = miss(x[:, ::-1], "key", cfg, 4)
    np.testing.assert_allclose(swapped[:, ::-1], miss(x, "key", cfg, 4), atol=1e-5)


def test_bits_are_those_of_the_formula():
    """b + 2m/g + m r (n + d) / (n d) + s (m + 16) bits an entry, for d=64 and n=512: 4.27 with 16-bit exact values."""
    k = jnp.zeros((1, 512, 1, 64))
    cache = kv_compress({"k": k, "v": k}, GEAR(sinks=0, group=64), dtype="bfloat16")
    block = cache.states[0].frozen.prompt
    keys, values = (sum(map(nbits, jax.tree.leaves(x))) / (512 * 64) for x in (block.k, block.v))
    low = 16 * 4 * (512 + 64) / (512 * 64)
    assert keys == 2 + 32 / 64 + low + 32 * 2 * outliers(0.02, 512) / 512
    # A token of one head has 64 values, too few for an outlier of 2 %.
    assert values == 2 + 32 / 64 + low
    assert cache_bytes(cache).live < cache_bytes(cache).allocated


def test_later_blocks_have_their_own_rank():
    k = jnp.ones((1, 64, 2, 64))
    cache = kv_compress({"k": k, "v": k}, GEAR(rank=4, rank_decode=1), max_len=128)
    frozen = cache.states[0].frozen
    assert frozen.prompt.k.a.shape[-1] == 4 and frozen.chunks.k.a.shape[-1] == 1
    assert materialize(cache, 0).k.shape[2] == 64 + 4 + 64 + 64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": 5}, "GEAR.bits must be 2, 3, 4 or 8, got 5"),
        ({"base": "awq"}, "GEAR.base must be"),
        ({"group": 48}, "GEAR.residual must be a positive multiple of 32 and of group=48"),
        ({"rank": 65}, "GEAR.rank must be in 0..residual=64, got 65"),
        ({"sparsity": 1.0}, r"GEAR.sparsity must be in \[0, 1\), got 1.0"),
        ({"iters": 0}, "GEAR.iters must be >= 1"),
        ({"residual": 0, "rank": 0, "rank_decode": 0}, "GEAR.residual must be a positive multiple"),
        ({"dtype": "float32"}, "GEAR.dtype must be"),
    ],
)
def test_config_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        GEAR(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"group": 64}, "GEAR.group=64 does not divide the head width 32 of values"),
        ({"group": 32, "rank": 33}, "GEAR.rank and rank_decode must be at most the head width 32"),
        ({"group": 32, "sparsity": 0.01}, "keeps no outlier of vectors of 64 and 64 entries"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    k = jnp.zeros((1, 64, 2, 32))
    with pytest.raises(ValueError, match=message):
        kv_compress({"k": k, "v": k}, GEAR(**options))
