"""Merging along the great circle, magnitudes kept, tokens retained, and the pairs of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import KIVI, DenseKV, KVSpec, MiniCache, layer_similarity, plan_pairs
from compressjax.kvcache.minicache import angles, merge_pair, norms, restore_pair, slerp, unit

B, K, N, D = 1, 2, 32, 16
KEEP = jnp.ones((B, N), bool)
MERGED = MiniCache(bits=None, gamma=0.0, residual=32)
arc = functools.partial(jax.jit, static_argnames=("t", "granularity"))(slerp)


@functools.partial(jax.jit, static_argnames="cfg")
def both(low, high, cfg):
    """Both layers after a merge."""
    held = merge_pair(low, high, "value", cfg, KEEP, True, "float32")
    return restore_pair(held, "value", cfg, 0, D), restore_pair(held, "value", cfg, 1, D)


def draw(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, K, N, D)), jnp.float32)


def test_the_ends_of_the_arc_and_its_middle():
    u, v = unit(draw(0)), unit(draw(1))
    np.testing.assert_allclose(arc(u, v, t=0.0), u, atol=1e-5)
    np.testing.assert_allclose(arc(u, v, t=1.0), v, atol=1e-5)
    np.testing.assert_allclose(arc(u, v, t=0.3), arc(v, u, t=0.7), atol=1e-5)
    np.testing.assert_allclose(norms(arc(u, v, t=0.3)), 1, atol=1e-5)
    # Angles to both ends are the shares of the whole, in closed form.
    whole = angles(u, v)
    np.testing.assert_allclose(angles(u, arc(u, v, t=0.3)), 0.3 * whole, atol=1e-4)
    np.testing.assert_allclose(angles(v, arc(u, v, t=0.3)), 0.7 * whole, atol=1e-4)
    np.testing.assert_allclose(np.cos(whole), np.sum(np.asarray(u) * np.asarray(v), -1), atol=1e-5)


def test_the_arc_is_a_rotation():
    """In three dimensions: about the axis u x v, by the share t of the angle (Rodrigues)."""
    rng = np.random.default_rng(0)
    u, v = (x / np.linalg.norm(x) for x in rng.standard_normal((2, 3)))
    axis = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    w = 0.4 * np.arccos(u @ v)
    want = u * np.cos(w) + np.cross(axis, u) * np.sin(w) + axis * (axis @ u) * (1 - np.cos(w))
    got = slerp(jnp.asarray(u, jnp.float32)[None, None], jnp.asarray(v, jnp.float32)[None, None], 0.4)
    np.testing.assert_allclose(got[0, 0], want, atol=1e-5)


def test_equal_directions_lose_nothing_and_magnitudes_are_kept():
    low = draw()
    high = low * jnp.asarray(np.random.default_rng(2).uniform(0.5, 2, (B, K, N, 1)), jnp.float32)
    for got, want in zip(both(low, high, cfg=MERGED), (low, high), strict=True):
        np.testing.assert_allclose(got, want, rtol=5e-3)  # magnitudes are bfloat16
    apart = both(low, draw(1), cfg=MERGED)
    np.testing.assert_allclose(norms(apart[0]), norms(low), rtol=5e-3)
    np.testing.assert_allclose(norms(apart[1]), norms(draw(1)), rtol=5e-3)


def test_merging_on_the_arc_wins_where_layers_are_alike_and_only_there():
    """The premise of the method, and what happens without it."""
    rng = np.random.default_rng(3)
    low = draw()
    noise = jnp.asarray(0.05 * rng.standard_normal(low.shape), jnp.float32)
    scale = jnp.asarray(rng.uniform(0.5, 2, (B, K, N, 1)), jnp.float32)
    error = {}
    for name, high in (("alike", scale * (low + noise)), ("unlike", draw(9))):
        for merge in ("slerp", "average"):
            cfg = MiniCache(bits=None, gamma=0.0, residual=32, merge=merge)
            made = both(low, high, cfg=cfg)
            error[name, merge] = sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(made, (low, high), strict=True))
    assert error["alike", "slerp"] < error["alike", "average"] / 9  # a third of it before squaring
    assert error["unlike", "slerp"] > error["unlike", "average"]


def test_retained_tokens_are_exact():
    low = draw()
    high = low.at[:, :, 5].set(-low[:, :, 5]).at[:, 1, 20].multiply(-1.0)
    cfg = MiniCache(bits=None, gamma=0.05, retain_cap=0.1, residual=32)
    held = jax.jit(functools.partial(merge_pair, kind="value", cfg=cfg, prompt=True, dtype="float32"))(
        low, high, keep=KEEP
    )
    assert held.kept.shape[-1] == 4
    assert sorted(np.asarray(held.kept)[0, 1].tolist()) == [5, 20, N, N]
    made = both(low, high, cfg=cfg)
    for got, want in zip(made, (low, high), strict=True):
        np.testing.assert_array_equal(got[:, 1, jnp.array([5, 20])], want[:, 1, jnp.array([5, 20])])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_equal_and_opposite_vectors_give_no_nan(dtype):
    low = draw().at[:, :, 0].set(0).at[:, :, 1].set(1e-30)
    high = draw(1).at[:, :, 0].set(0).at[:, :, 2].set(low[:, :, 2]).at[:, :, 3].set(-low[:, :, 3])
    low, high = (x.astype(dtype).astype(jnp.float32) for x in (low, high))
    for cfg in (MERGED, MiniCache(bits=4, group=16, residual=32)):
        for got in both(low, high, cfg=cfg):
            assert bool(jnp.all(jnp.isfinite(got)))
    np.testing.assert_array_equal(both(low, high, cfg=MERGED)[0][:, :, 0], 0)


def test_layers_are_paired_and_the_others_stay():
    half = MiniCache(residual=64, group=32).segments(7)
    alone = KIVI(bits=4, group=32, residual=64)
    assert [(s.codec == alone, s.start, s.stop) for s in half] == [(True, 0, 3), (False, 3, 7)]
    odd = MiniCache(residual=64, group=32, start=0, bits=None).segments(5)
    assert [(type(s.codec), s.start, s.stop) for s in odd] == [(MiniCache, 0, 4), (DenseKV, 4, 5)]
    planned = MiniCache(residual=64, group=32, pairs=(1, 4)).segments(7)
    assert [(s.start, s.stop) for s in planned] == [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7)]
    assert MiniCache(pairs=(), bits=None).segments(4)[0].codec == DenseKV(residual=128, sinks=4)


def test_similarity_finds_the_layers_that_are_alike():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 1, 20, K, D))
    x[2] = 3 * x[1] + 0.1 * rng.standard_normal(x[1].shape)
    x = jnp.asarray(x, jnp.float32)
    found = layer_similarity(x, x)
    assert found.shape == (3, 2) and float(found[1].min()) > 0.99 and float(jnp.abs(found[0]).max()) < 0.3
    assert plan_pairs(found, start=0) == (1,)
    assert plan_pairs(jnp.zeros((3, 2)), start=0) == ()
    with pytest.raises(ValueError, match="start must be in 0..2 for 4 layers, got 3"):
        plan_pairs(found, start=3)
    with pytest.raises(ValueError, match="similarity must be finite"):
        plan_pairs(found.at[0, 0].set(jnp.nan))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"t": 1.5}, r"MiniCache.t must be in \[0, 1\], got 1.5"),
        ({"gamma": -0.1}, r"MiniCache.gamma must be in"),
        ({"bits": 3}, "MiniCache.bits must be None, 2, 4 or 8, got 3"),
        ({"granularity": "layer"}, "MiniCache.granularity must be one of"),
        ({"group": 48}, "MiniCache.residual must be a positive multiple of 32 and of group=48"),
        ({"start": -1}, "MiniCache.start must be >= 0"),
    ],
)
def test_config_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MiniCache(**options)


def test_stacks_and_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="MiniCache.start must be in 0..2 for 4 layers, got 3"):
        MiniCache(start=3).segments(4)
    with pytest.raises(ValueError, match="must be disjoint pairs of 4 layers"):
        MiniCache(pairs=(0, 1)).segments(4)
    spec = KVSpec(layers=2, batch=1, q_heads=1, kv_heads=1, head_dim=48, prompt=4, max_len=8)
    with pytest.raises(ValueError, match="MiniCache.group=64 does not divide the head width 48"):
        MiniCache().check(spec)
