"""What every codec has to obey, whatever it does to keys and values."""

import dataclasses

import jax
import numpy as np
import pytest

from compressjax.kvcache import cache_bytes
from compressjax.ops import nbits

from . import replay
from .rows import RING, ROWS

PROMPT, STEPS = 70, 3 * RING
TOTAL = PROMPT + STEPS


@pytest.fixture(
    scope="module",
    params=[pytest.param(row, id=row.name, marks=pytest.mark.slow if row.slow else ()) for row in ROWS],
)
def played(request):
    """A codec after a prompt and three flushes: outputs, oracles and caches of two runs that differ in row 1 only."""
    row = request.param
    fixed = () if row.fixed is None else row.fixed()
    data = replay.random_data(TOTAL)
    start = replay.compressed(row.codec, data, PROMPT, TOTAL, fixed=fixed)
    before = [program._cache_size() for program in replay.programs()]
    got, want, end = replay.replay(start, data, PROMPT, TOTAL)
    traces = [program._cache_size() - n for program, n in zip(replay.programs(), before, strict=True)]
    # Row 1: other tokens altogether. Row 0: something absurd in its padding.
    other = replay.random_data(TOTAL, seed=1)
    padded = dataclasses.replace(data, **{name: getattr(data, name).copy() for name in ("k", "v", "q")})
    for name in ("k", "v", "q"):
        getattr(padded, name)[:, 1] = getattr(data, name)[:, 1]
        getattr(padded, name)[:, 1, :9] = 1e3
        getattr(padded, name)[:, 0] = getattr(other, name)[:, 0]
    again, _, _ = replay.replay(replay.compressed(row.codec, padded, PROMPT, TOTAL, fixed=fixed), padded, PROMPT, TOTAL)
    return row, start, end, got, want, again, traces


def test_attention_is_that_over_the_materialised_cache(played):
    """At every fill level of the ring, and after each flush."""
    _, _, _, got, want, _, _ = played
    np.testing.assert_allclose(got, want, atol=2e-5 * max(1.0, np.abs(want).max()))


def test_nothing_is_traced_twice(played):
    assert played[-1] == [1, 1]


def test_rows_do_not_meet_and_padding_leaves_no_trace(played):
    """Row 1 sees the same tokens in both runs; the other row and its own padding differ."""
    _, _, _, got, _, again, _ = played
    np.testing.assert_allclose(got[:, :, 1], again[:, :, 1], atol=1e-5)
    assert np.abs(got[:, :, 0] - again[:, :, 0]).max() > 0.1


def test_bytes_are_those_of_the_arrays(played):
    _, start, end, *_ = played
    for cache in (start, end):
        size = cache_bytes(cache)
        assert size.allocated == nbits(cache) // 8 == sum(a.nbytes for a in jax.tree.leaves(cache))
        assert 0 < size.live <= size.allocated
    assert cache_bytes(start).live <= cache_bytes(end).live
    assert jax.tree.structure(start) == jax.tree.structure(end)
    assert [a.shape for a in jax.tree.leaves(start)] == [a.shape for a in jax.tree.leaves(end)]


def test_an_exact_codec_is_exact(played):
    row, _, _, got, *_ = played
    if not row.exact:
        pytest.skip("lossy")
    np.testing.assert_allclose(got, plain_attention(replay.random_data(TOTAL)), atol=2e-5)


@pytest.mark.parametrize("name", ["dense", "ems with room for all"])
def test_a_sliding_window_forgets(name):
    """Slots in the order of the text and slots chosen per head, past two flushes."""
    codec = next(row.codec for row in ROWS if row.name == name)
    data, stop = replay.random_data(TOTAL), PROMPT + 60
    start = replay.compressed(codec, data, PROMPT, TOTAL, window=40)
    got, _, _ = replay.replay(start, data, PROMPT, stop)
    np.testing.assert_allclose(got, plain_attention(data, stop, window=40), atol=2e-5)


def plain_attention(data, stop=TOTAL, window=TOTAL):
    """Attention without any cache, step by step, in NumPy."""
    out = []
    for at in range(PROMPT, stop):
        q = data.q[:, :, at].reshape(replay.LAYERS, replay.BATCH, replay.KV_HEADS, replay.GROUPS, replay.WIDTH)
        k, v = data.k[:, :, : at + 1], data.v[:, :, : at + 1]
        scores = np.einsum("lbkgd,lbskd->lbkgs", q * replay.WIDTH**-0.5, k)
        seen = data.mask[:, : at + 1] & (at - np.arange(at + 1) < window)[None]
        scores = np.where(seen[None, :, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out.append(np.einsum("lbkgs,lbske->lbkge", weights, v)[..., None, :])
    return np.stack(out)
