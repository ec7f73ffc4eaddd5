"""Scores against column sums of the dense softmax, eviction and merging against lists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import EMS, H2O, KVSpec, SnapKV, StreamingLLM, kv_compress
from compressjax.kvcache.attention_mass import attention_mass, max_pool
from compressjax.kvcache.ems import global_local
from compressjax.kvcache.eviction import best
from compressjax.kvcache.slots import Candidates

from . import replay
from .rows import RING

B, K, G, T, D = 2, 2, 2, 70, 8


def causal_softmax(q, k, real, window=None):
    """``[B, K, G, T, T]``, zero rows at padding."""
    scores = np.einsum("bkgtd,bksd->bkgts", q, k)
    t = np.arange(T)
    seen = (t[None] <= t[:, None]) & (True if window is None else t[:, None] - t[None] < window)
    scores = np.where(seen & real[:, None, None, None, :], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) * real[:, None, None, :, None]


@pytest.mark.parametrize("window", [None, 20])
def test_scores_are_column_sums(window):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((B, K, G, T, D)), rng.standard_normal((B, K, T, D))
    real = np.arange(T)[None] >= np.array([0, 11])[:, None]
    total, looks, recent = jax.jit(functools.partial(attention_mass, last=16, window=window))(
        jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32), jnp.asarray(real)
    )
    want = causal_softmax(q, k, real, window).mean(2)
    np.testing.assert_allclose(total, want.sum(2), atol=1e-5)
    np.testing.assert_allclose(recent, want[:, :, -16:].mean(2), atol=1e-5)
    after = np.cumsum(real[:, ::-1], 1)[:, ::-1]
    np.testing.assert_array_equal(looks, after if window is None else np.minimum(after, window))


def test_pooling_takes_the_best_neighbour():
    np.testing.assert_array_equal(max_pool(jnp.array([[0.0, 3, 0, 0, 1]]), 3), [[3, 3, 3, 1, 1]])


def candidates(mass, recent, looks=None, at=None, k=None, v=None):
    """One row and one head."""
    n = len(mass)
    lead = lambda x, dtype=jnp.float32: jnp.asarray(x, dtype)[None, None]  # noqa: E731
    k = np.eye(n, 4) if k is None else k
    return Candidates(
        k=lead(k),
        v=lead(np.arange(4 * n).reshape(n, 4) if v is None else v),
        mass=lead(mass),
        looks=lead(np.ones(n) if looks is None else looks, jnp.int32),
        at=lead(np.arange(n) if at is None else at, jnp.int32),
        bias=lead(np.zeros(n)),
        recent=lead(recent),
        now=jnp.int32(n),
        first=jnp.zeros(1, jnp.int32),
    )


def test_early_and_late_favourites_both_survive():
    """One token drew attention long ago, one draws it now: only the mixed score keeps both."""
    tokens = candidates([9.0, 0.1, 0.1, 0.9], [0.0, 0.05, 0.05, 0.9], looks=[10, 10, 10, 1])
    kept = {
        kind: set(np.asarray(best(tokens, global_local(tokens, kind), 2, window=0, sinks=0))[0, 0].tolist())
        for kind in ("glo_loc", "global", "local")
    }
    assert kept["glo_loc"] == {0, 3} and 3 in kept["local"] and 0 not in kept["local"]
    assert np.argmax(np.asarray(H2O(budget=2, interval=1).rank(tokens))[0, 0]) == 0


SPEC = KVSpec(layers=1, batch=1, q_heads=1, kv_heads=1, head_dim=4, prompt=8, max_len=8)


def choose(tokens, **options):
    cfg = EMS(**{"budget": 3, "window": 1, "pool": 1, "interval": 1, **options})
    return cfg.choose(SPEC, tokens)


def test_no_merging_is_eviction_and_the_zero_class_is_dropped():
    rng = np.random.default_rng(0)
    tokens = candidates(rng.random(8), rng.random(8), k=rng.standard_normal((8, 4)))
    evicted = choose(tokens, merge="none")
    nothing_alike = choose(tokens, tau=1.01)
    for a, b in zip(evicted, nothing_alike, strict=True):
        np.testing.assert_array_equal(a, b)
    order = np.argsort(-np.asarray(global_local(tokens))[0, 0, :7], kind="stable")[:2]
    np.testing.assert_array_equal(evicted.at[0, 0], [*sorted(order), 7])


def test_merging_follows_lists():
    """Budget 3 of 8 with one protected: four candidates join the center most like them, or none."""
    rng = np.random.default_rng(4)
    k, v = rng.standard_normal((8, 4)), rng.standard_normal((8, 4))
    tokens = candidates(rng.random(8), rng.random(8), k=k, v=v)
    got = choose(tokens, tau=0.1)
    score = np.asarray(global_local(tokens))[0, 0].astype(np.float64)
    order = np.argsort(-score[:7], kind="stable")
    centers, members = sorted(order[:2].tolist()), order[2:6].tolist()
    centered = k - k.mean(0)
    direction = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    joined = {c: [c] for c in centers}
    for m in members:
        alike = [direction[m] @ direction[c] for c in centers]
        if max(alike) > 0.1:
            joined[centers[int(np.argmax(alike))]].append(m)
    assert sum(map(len, joined.values())) > 2, "nothing was merged"
    assert sum(map(len, joined.values())) < 6, "nothing fell into the zero class"
    for slot, (center, group) in enumerate(joined.items()):
        share = score[group] / score[group].sum()
        np.testing.assert_allclose(got.k[0, 0, slot], share @ k[group], atol=1e-5)
        np.testing.assert_allclose(got.v[0, 0, slot], share @ v[group], atol=1e-5)
        np.testing.assert_allclose(got.bias[0, 0, slot], np.log(score[group].sum() / score[center]), atol=1e-5)
        np.testing.assert_allclose(got.mass[0, 0, slot], np.asarray(tokens.mass)[0, 0, group].sum(), atol=1e-5)
    np.testing.assert_array_equal(got.k[0, 0, 2], tokens.k[0, 0, 7])


def test_two_equal_tokens_merge_into_one_that_weighs_as_both():
    k = np.array([[1.0, 2, 0, 0], [1.0, 2, 0, 0], [-1, 0.5, 0, 3]])
    v = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 5.0, 0, 0]])
    got = choose(candidates([0.5, 0.5, 0.1], [0.5, 0.5, 0.1], k=k, v=v), budget=2)
    np.testing.assert_allclose(got.k[0, 0], k[[0, 2]], atol=1e-6)
    q = np.random.default_rng(0).standard_normal(4)
    merged = np.exp(np.asarray(got.k[0, 0]) @ q + np.asarray(got.bias[0, 0]))
    copies = np.exp(k @ q)
    want = copies @ v / copies.sum()
    np.testing.assert_allclose(merged @ np.asarray(got.v[0, 0]) / merged.sum(), want, atol=1e-5)


@pytest.mark.slow
def test_slots_never_grow_and_protected_tokens_stay():
    data = replay.random_data(102)
    for codec in (EMS(budget=20, window=8, sinks=2, interval=RING), SnapKV(budget=20, window=8, interval=RING)):
        start = replay.compressed(codec, data, 70, 102)
        _, _, end = replay.replay(start, data, 70, 102)
        at = np.asarray(end.states[0].frozen.at)
        assert at.shape[-1] == 20 and (np.diff(at, axis=-1) > 0).all()
        assert np.isin(np.arange(88, 96), at[0, 0, 0]).all()
        if codec.sinks:
            assert np.isin([0, 1], at[0, 0, 1]).all() and np.isin([9, 10], at[0, 1, 0]).all()


def test_streaming_keeps_the_first_and_the_last():
    data = replay.random_data(70)
    cache = replay.compressed(StreamingLLM(budget=20, sinks=4, interval=RING), data, 70, 70)
    at = np.asarray(cache.states[0].frozen.at)
    np.testing.assert_array_equal(at[0, 0, 0], [0, 1, 2, 3, *range(48, 64)])
    np.testing.assert_array_equal(at[1, 1, 1], [9, 10, 11, 12, *range(48, 64)])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EMS(budget=32), r"EMS.budget must exceed window \+ sinks = 32, got 32"),
        (lambda: EMS(interval=0), "EMS.interval must be >= 1, got 0"),
        (lambda: EMS(merge_ratio=-1), "EMS.merge_ratio must be >= 0"),
        (lambda: EMS(tau=1.2), r"EMS.tau must be in \[-1, 1.01\], got 1.2"),
        (lambda: EMS(merge="k"), "EMS.merge must be one of"),
        (lambda: EMS(pool=4), "EMS.pool must be odd and >= 1, got 4"),
        (lambda: SnapKV(window=0), "SnapKV.window must be >= 1"),
        (lambda: StreamingLLM(budget=0), r"StreamingLLM.budget must exceed window \+ sinks = 4, got 0"),
        (lambda: H2O(budget=8, window=8), r"H2O.budget must exceed window \+ sinks = 8, got 8"),
    ],
)
def test_config_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_caches_that_cannot_be_scored():
    data = replay.random_data(40)
    cache = {name: jnp.asarray(getattr(data, name)) for name in ("k", "v")}
    with pytest.raises(ValueError, match="EMS scores tokens by attention: pass queries"):
        kv_compress(cache, EMS(budget=36, window=8))
    with pytest.raises(ValueError, match="EMS.budget=64 is more than the 40 tokens"):
        kv_compress(cache, EMS(budget=64, window=8))
    with pytest.raises(ValueError, match="rope_space='pre' needs a model with rotary positions"):
        kv_compress(cache, EMS(budget=36, window=8, rope_space="pre"))
