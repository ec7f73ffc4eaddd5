"""Orthogonal maps, principal axes, projected attention, training of bases, and the search for ranks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache import MatryoshkaKV, kv_compress, materialize, pack_projections
from compressjax.kvcache.matryoshka import runs_of_equal_width
from compressjax.kvcache.matryoshka_training import (
    KVMoments,
    greedy_rank_search,
    hidden_errors,
    kv_moments,
    mkv_logits,
    pca_init,
    sample_ranks,
    trainer,
)
from compressjax.kvcache.orthogonal import MAPS, cayley, inv_cayley, orthogonal
from compressjax.models import Llama

from . import replay
from .rows import HEADS, KV_HEADS, LAYERS, RING, WIDTH, random_bases

TOKENS = np.random.default_rng(5).integers(0, 61, (2, 48))


@pytest.mark.parametrize("kind", MAPS)
def test_maps_are_orthogonal_and_start_at_the_identity(kind):
    x = np.random.default_rng(0).standard_normal((3, 8, 8))
    x = jnp.asarray(10 * x / np.linalg.norm(x, axis=(1, 2), keepdims=True), jnp.float32)
    eye = np.tile(np.eye(8), (3, 1, 1))
    q = jax.jit(functools.partial(orthogonal, kind=kind))(x)
    np.testing.assert_allclose(jnp.swapaxes(q, 1, 2) @ q, eye, atol=2e-5)
    np.testing.assert_allclose(orthogonal(jnp.zeros_like(x), kind), eye, atol=1e-6)
    assert float(jnp.max(jnp.abs(q - jnp.asarray(eye, jnp.float32)))) > 0.5
    grad = jax.jit(jax.grad(lambda x: jnp.sum(orthogonal(x, kind)[0, :2] ** 3)))(x)
    assert bool(jnp.all(jnp.isfinite(grad))) and float(jnp.abs(grad).max()) > 1e-3


def test_the_cayley_map_has_an_inverse():
    x = jnp.tril(jnp.asarray(np.random.default_rng(0).standard_normal((8, 8)), jnp.float32), -1)
    q = cayley(x)
    np.testing.assert_allclose(inv_cayley(q), x, atol=1e-4)
    assert np.linalg.det(np.asarray(q)) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="needs an orthogonal matrix"):
        inv_cayley(2 * q)


def test_principal_axes_hold_most_and_are_nested():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 2, 1, 1, 8)) @ (rng.standard_normal((8, 8)) * 0.6 ** np.arange(8)[:, None]) + 3
    x = np.moveaxis(x, 0, -2)
    moments = KVMoments(
        jnp.float32(500),
        jnp.asarray(x.sum(-2), jnp.float32),
        jnp.asarray(np.einsum("...nd,...ne->...de", x, x), jnp.float32),
    )
    params = pca_init(moments)
    centered = x[0, 0, 0] - x[0, 0, 0].mean(0)
    values = np.sort(np.linalg.eigvalsh(centered.T @ centered))[::-1]
    inside = centered @ np.asarray(params.uk[0, 0])
    np.testing.assert_allclose((inside**2).sum(0), values, rtol=2e-2, atol=1e-2)
    for _ in range(50):
        other, _ = np.linalg.qr(rng.standard_normal((8, 3)))
        assert ((centered @ other) ** 2).sum() < (inside[:, :3] ** 2).sum()
    with pytest.raises(ValueError, match="need at least as many tokens, got 5"):
        pca_init(moments._replace(count=jnp.float32(5)))
    with pytest.raises(ValueError, match="moments of keys and values are not finite"):
        pca_init(moments._replace(total=moments.total * jnp.nan))


def test_moments_are_those_of_all_texts_together(model):
    whole = kv_moments(*model, [TOKENS])
    parts = kv_moments(*model, [TOKENS[:1], TOKENS[1:]])
    assert whole.count == 2 * 44 and whole.second.shape == (2, 4, 2, 32, 32)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="at least one batch"):
        kv_moments(*model, [])


def test_kept_coordinates_are_the_projection():
    """A plan that differs by head: what is held is mu + Q_r Q_r' (x - mu), sinks and ring apart."""
    cfg = MatryoshkaKV(ranks_k=((8, 20), (12, 4)), ranks_v=((16, 12), (8, 24)), pieces=1, residual=RING, sinks=0)
    data, params = replay.random_data(RING, padding=(0, 0)), random_bases()
    cache = kv_compress({"k": jnp.asarray(data.k), "v": jnp.asarray(data.v)}, cfg, fixed=pack_projections(params, cfg))
    assert cache.states[0].frozen.prompt.k.shape == (LAYERS, 2, 1, RING, 28)  # the wider layer's
    bases = params.bases()
    for which, (x, ranks, mu) in enumerate(((data.k, cfg.ranks_k, params.mu_k), (data.v, cfg.ranks_v, params.mu_v))):
        for layer, head in itertools.product(range(LAYERS), range(KV_HEADS)):
            q, centre = np.asarray(bases[which])[layer, head, :, : ranks[layer][head]], np.asarray(mu)[layer, head]
            want = centre + (x[layer, :, :, head] - centre) @ q @ q.T
            got = materialize(cache, layer)[which][:, head, RING:]
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_layers_of_like_width_lie_together():
    widths = [9, 8, 3, 3, 2, 9]
    runs = runs_of_equal_width(widths, 3)
    assert runs == [(0, 2), (2, 5), (5, 6)]
    every = [sorted(c) for n in range(3) for c in itertools.combinations(range(1, 6), n)]

    def cost(cuts):
        return sum(max(widths[a:b]) * (b - a) for a, b in itertools.pairwise([0, *cuts, 6]))

    assert sum(max(widths[a:b]) * (b - a) for a, b in runs) == min(map(cost, every))


def full(cfg, rank):
    return (jnp.full((cfg.num_layers, cfg.num_kv_heads), rank, jnp.int32),) * 2


def model_bases(cfg, seed=0):
    rng = np.random.default_rng(seed)
    shape = (2, cfg.num_layers, cfg.num_kv_heads, cfg.head_dim)
    q, _ = np.linalg.qr(rng.standard_normal((*shape, cfg.head_dim)))
    zero = jnp.zeros(q.shape[1:], jnp.float32)
    mu = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return random_bases()._replace(
        ak=zero, av=zero, uk=jnp.asarray(q[0], jnp.float32), uv=jnp.asarray(q[1], jnp.float32), mu_k=mu[0], mu_v=mu[1]
    )


def test_full_rank_is_the_model_whatever_the_basis(model):
    cfg, params = model
    logits = jax.jit(functools.partial(mkv_logits, cfg))
    tokens, bases = jnp.asarray(TOKENS, jnp.int32), model_bases(cfg)
    want = jax.jit(lambda p, t: Llama(cfg).apply({"params": p}, t))(params, tokens)
    np.testing.assert_allclose(logits(params, bases, tokens, *full(cfg, 32)), want, atol=2e-3)
    low = logits(params, bases, tokens, *full(cfg, 8))
    assert float(jnp.abs(low - want).max()) > 0.1
    np.testing.assert_allclose(low[:, :4], want[:, :4], atol=2e-3)  # sinks are exact


@pytest.mark.standard_promotion("schedules and moment estimates of optax mix dtypes")
def test_training_lowers_the_loss_and_leaves_the_model_alone(model):
    cfg, params = model
    init, step = trainer(cfg, steps=30, lr=1e-2, warmup=1, kl_weight=1.0)
    start = pca_init(kv_moments(cfg, params, [TOKENS]))
    state, step = init(start), jax.jit(step)
    measure = jax.jit(functools.partial(mkv_logits, cfg))
    tokens = jnp.asarray(TOKENS, jnp.int32)
    exact = jax.nn.log_softmax(measure(params, start, tokens, *full(cfg, 32)))

    def kl(mkv):
        student = jax.nn.log_softmax(measure(params, mkv, tokens, *full(cfg, 12)))
        return float(jnp.mean(jnp.sum(jnp.exp(exact) * (exact - student), -1)))

    before = kl(start)
    for index in range(30):
        state, (loss, divergence) = step(state, params, tokens, jax.random.fold_in(jax.random.key(0), index))
        assert bool(jnp.isfinite(loss)) and float(divergence) >= -1e-6
    assert kl(state.mkv) < 0.9 * before
    np.testing.assert_array_equal(state.mkv.uk, start.uk)
    q, _ = state.mkv.bases()
    np.testing.assert_allclose(jnp.swapaxes(q, -1, -2) @ q, np.broadcast_to(np.eye(32), q.shape), atol=1e-4)


def test_ranks_are_drawn_from_the_grid():
    ranks = np.stack(sample_ranks(jax.random.key(0), 30, 40, 64))
    assert set(np.unique(ranks)) == set(range(8, 65, 8))
    assert (np.bincount(ranks.ravel() // 8)[1:] > 200).all()


def test_the_search_finds_the_best_plan_of_a_separable_error():
    """Three heads and three levels, convex and additive: brute force agrees."""
    weight = np.array([1.0, 3.0, 9.0])

    def cost(ranks):
        return (weight * (3.0 - np.asarray(ranks)) ** 2).sum(-1)

    def errors(ranks, tried):
        return np.array([cost(plan[0, :, 0]) + 1e3 * (plan[1] < 3).sum() - cost(ranks[0, :, 0]) for plan in tried])

    # Values are never worth lowering, so all of the budget is taken from keys.
    plan = greedy_rank_search(errors, (3, 1), 3, 14 / 18, step=1, share=1 / 6)
    got = [row[0] for row in plan.ranks_k]
    best = min(cost(r) for r in itertools.product((1, 2, 3), repeat=3) if sum(r) <= 5)
    assert plan.mean <= 14 / 6 and cost(got) == best and min(got) >= 1
    assert plan.ranks_v == ((3,), (3,), (3,))
    with pytest.raises(ValueError, match="budget must be in"):
        greedy_rank_search(errors, (3, 1), 3, 0.2, step=1)
    with pytest.raises(ValueError, match="step must divide the head width 3, got 2"):
        greedy_rank_search(errors, (3, 1), 3, 0.7, step=2)


@pytest.mark.slow
def test_the_search_on_a_model_meets_its_budget(model):
    cfg, params = model
    bases = pca_init(kv_moments(cfg, params, [TOKENS]))
    plan = greedy_rank_search(hidden_errors(cfg, params, bases, TOKENS[:1]), (4, 2), 32, 0.5, step=8)
    assert plan.mean <= 16 and {r for half in plan for row in half for r in row} <= {8, 16, 24, 32}
    codec = MatryoshkaKV(ranks_k=plan.ranks_k, ranks_v=plan.ranks_v, pieces=2, residual=RING)
    assert len(pack_projections(bases, codec)) == len(codec.segments(4)) <= 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MatryoshkaKV(rank=0), "MatryoshkaKV.rank and pieces must be >= 1"),
        (lambda: MatryoshkaKV(ranks_k=((1,),)), "must be given together"),
        (lambda: MatryoshkaKV(ranks_k=((1,),), ranks_v=((1, 2),)), "same layers and heads"),
        (lambda: MatryoshkaKV(ranks_k=((0,),), ranks_v=((1,),)), "must be >= 1 everywhere"),
        (lambda: MatryoshkaKV(bits=9), "MatryoshkaKV.bits must be None or in 1..8"),
        (lambda: MatryoshkaKV(ranks_k=((1,),), ranks_v=((1,),)).segments(2), "has 1 layers, the cache 2"),
        (lambda: pack_projections(random_bases(), MatryoshkaKV(rank=33)), "rank 33 exceeds the head width 32"),
        (
            lambda: pack_projections(random_bases()._replace(mu_k=jnp.full((2, 2, 32), jnp.nan)), MatryoshkaKV()),
            "means of MKVParams are not finite",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_cache_without_bases_or_with_other_sizes():
    data = replay.random_data(40)
    cache = {name: jnp.asarray(getattr(data, name)) for name in ("k", "v")}
    with pytest.raises(ValueError, match=r"needs its bases: pass fixed=pack_projections"):
        kv_compress(cache, MatryoshkaKV(residual=RING), q_heads=HEADS)
    with pytest.raises(ValueError, match=f"rank 48 exceeds the head width {WIDTH}"):
        kv_compress(cache, MatryoshkaKV(rank=48, residual=RING))
    with pytest.raises(ValueError, match="one entry for each of 1 segments, got 2"):
        kv_compress(cache, MatryoshkaKV(residual=RING), fixed=(None, None))
