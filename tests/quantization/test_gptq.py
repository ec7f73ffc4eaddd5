"""GPTQ against oracles, limits and the laws of its paper."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record, merge
from compressjax.leaf import Affine, Codebook, unpack_codes, unpack_indices
from compressjax.ops import dense, nbits, size
from compressjax.quantization import GPTQ, RTN, gptq, gptq_shared, rtn

from .hessians import correlated, weight


@functools.partial(jax.jit, static_argnames="cfg")
def run(w, stats, *, cfg):
    return gptq(w, stats, cfg)


def loss(w, q, h):
    miss = np.asarray(w - q, np.float64)
    return float(np.sum(miss * (np.asarray(h, np.float64) @ miss)))


ORDERS = [
    GPTQ(bits=3, group=16, order="none"),
    GPTQ(bits=3, group=16, order="none", static_groups=False),
    GPTQ(bits=3, group=16, order="act"),
    GPTQ(bits=3, group=16, order="act", static_groups=False),
    GPTQ(bits=3, group=16, order="group_aware"),
    GPTQ(bits=3, group=16, order="group_aware", static_groups=False),
    GPTQ(bits=3, group=16, sym=True),
    GPTQ(bits=2, group=16, levels="ternary"),
    GPTQ(bits=3, group=-1, levels="kmeans"),
]


@pytest.mark.parametrize("cfg", ORDERS, ids=lambda c: f"{c.order}-{c.static_groups}-{c.levels}-{c.sym}")
def test_reported_error_is_the_leafs_and_beats_rounding(cfg):
    stats, _ = correlated(64)
    w = weight(64, 24)
    leaf, info = run(w, stats, cfg=cfg)
    np.testing.assert_allclose(info.error, loss(w, dense(leaf), stats.xtx), rtol=1e-3)
    np.testing.assert_allclose(info.energy, loss(w, 0 * w, stats.xtx), rtol=1e-4)
    plain = rtn(w, RTN(bits=cfg.bits, group=cfg.group, sym=cfg.sym))
    np.testing.assert_allclose(info.rounding_error, loss(w, dense(plain), stats.xtx), rtol=1e-3)
    assert float(info.error) < float(info.rounding_error)
    # The other direction: compensation moves weights further than rounding does.
    assert float(jnp.sum((w - dense(leaf)) ** 2)) > float(jnp.sum((w - dense(plain)) ** 2)) or cfg.levels != "uniform"


@pytest.mark.parametrize("block", [1, 128])
@pytest.mark.parametrize(
    "order, asymmetric",
    [
        ("none", "none"),
        ("group_aware", "gptaq"),
        *(
            pytest.param(o, a, marks=pytest.mark.slow)
            for o, a in [("act", "none"), ("act", "gptaq"), ("none", "gptaq")]
        ),
    ],
)
def test_independent_of_block(block, order, asymmetric):
    stats, x = correlated(48)
    drift = np.random.default_rng(2).normal(size=x.shape).astype(np.float32) * 0.1
    stats = dataclasses.replace(stats, dxxt=jnp.asarray(drift.T @ np.asarray(x)))
    cfg = GPTQ(bits=3, group=16, order=order, asymmetric=asymmetric)
    one, _ = run(weight(48, 8), stats, cfg=cfg)
    other, _ = run(weight(48, 8), stats, cfg=dataclasses.replace(cfg, block=block))
    np.testing.assert_array_equal(unpack_codes(one), unpack_codes(other))


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_independent_of_the_hessians_scale(factor):
    stats, _ = correlated(48)
    scaled = dataclasses.replace(stats, xtx=stats.xtx * factor)
    one, _ = run(weight(48, 8), stats, cfg=GPTQ(bits=3, group=16))
    other, _ = run(weight(48, 8), scaled, cfg=GPTQ(bits=3, group=16))
    np.testing.assert_array_equal(unpack_codes(one), unpack_codes(other))


def test_diagonal_hessian_is_rounding_bit_for_bit():
    stats = Record(count=jnp.float32(9), xtx=jnp.diag(jnp.exp(jax.random.normal(jax.random.key(0), (64,)))))
    w = weight(64, 16)
    for order in ("none", "act", "group_aware"):
        leaf, _ = run(w, stats, cfg=GPTQ(bits=4, group=32, order=order))
        plain = jax.jit(rtn, static_argnums=1)(w, RTN(bits=4, group=32))
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(a, b)


def test_eight_bits_are_nearly_exact():
    stats, _ = correlated(64)
    leaf, info = run(weight(64, 16), stats, cfg=GPTQ(bits=8, group=16))
    assert float(info.error / info.energy) < 1e-5


def test_permuting_inputs_permutes_the_result():
    stats, _ = correlated(40)
    w = weight(40, 8)
    perm = np.random.default_rng(3).permutation(40)
    cfg = GPTQ(bits=3, group=-1, order="act")
    one, _ = run(w, stats, cfg=cfg)
    moved = dataclasses.replace(stats, xtx=stats.xtx[perm][:, perm])
    other, _ = run(w[perm], moved, cfg=cfg)
    np.testing.assert_array_equal(unpack_codes(one)[perm], unpack_codes(other))


def test_between_brute_force_and_rounding():
    """On five inputs at two bits: optimum <= GPTQ always, GPTQ <= rounding on average."""
    cfg = GPTQ(bits=2, group=-1, order="act", scale_dtype="float32", damp=1e-4)
    every = np.asarray(list(itertools.product(range(4), repeat=5)), np.float32)
    totals = np.zeros(3)
    for seed in range(12):
        stats, _ = correlated(5, tokens=30, seed=seed)
        w = weight(5, 1, seed=seed + 50)
        leaf, info = run(w, stats, cfg=cfg)
        scale, zero = float(leaf.scale[0, 0]), float(dense(leaf)[0, 0] / leaf.scale[0, 0])
        zero = float(unpack_codes(leaf)[0, 0]) - zero
        candidates = scale * (every - round(zero))
        miss = np.asarray(w)[:, 0] - candidates
        best = np.min(np.einsum("ni,ij,nj->n", miss, np.asarray(stats.xtx), miss))
        assert best <= float(info.error) * (1 + 1e-4)
        totals += [best, float(info.error), float(info.rounding_error)]
    assert totals[0] <= totals[1] < totals[2]


@pytest.mark.parametrize("what", ["round", "zero"])
def test_dead_inputs_are_rounded_or_dropped(what):
    stats, x = correlated(64)
    dead = jnp.arange(64) % 5 == 0
    x = jnp.where(dead[None], 0, x)
    stats = dataclasses.replace(stats, xtx=x.T @ x)
    w = weight(64, 8)
    leaf, info = run(w, stats, cfg=GPTQ(bits=3, group=16, dead_inputs=what))
    assert int(info.dead) == 13
    if what == "zero":
        np.testing.assert_array_equal(dense(leaf)[dead], 0)
    else:
        step = np.repeat(np.asarray(leaf.scale, np.float32), 16, axis=0)
        assert np.all(np.abs(dense(leaf) - w)[dead] <= 0.5001 * step[dead])


@pytest.mark.parametrize("kind", ["rank one", "few tokens", "all zero"])
def test_singular_hessians_give_finite_results(kind):
    h = {
        "rank one": jnp.ones((32, 32)),
        "few tokens": correlated(32, tokens=3)[0].xtx,
        "all zero": jnp.zeros((32, 32)),
    }[kind]
    leaf, info = run(weight(32, 8), Record(count=jnp.float32(3), xtx=h), cfg=GPTQ(bits=3, group=16))
    assert bool(jnp.all(jnp.isfinite(dense(leaf))))
    assert np.isfinite(float(info.error))


def test_fallback_is_rounding_and_flagged():
    stats, _ = correlated(32, tokens=10)
    w = weight(32, 8)
    leaf, info = run(w, stats, cfg=GPTQ(bits=3, group=16, min_tokens=1.0))
    assert bool(info.fallback)
    plain = rtn(w, RTN(bits=3, group=16))
    np.testing.assert_array_equal(dense(leaf), dense(plain))
    bad = dataclasses.replace(stats, xtx=stats.xtx - 1e4 * jnp.eye(32) * jnp.max(stats.xtx))
    leaf, info = run(w, bad, cfg=GPTQ(bits=3, group=16, damp_step=0.5))
    assert bool(info.fallback)
    np.testing.assert_array_equal(dense(leaf), dense(plain))


def test_weights_that_share_an_input_are_as_if_alone():
    stats, _ = correlated(48)
    ws = weight(48, 8), weight(48, 16, seed=5)
    cfg = GPTQ(bits=3, group=16)
    together = jax.jit(gptq_shared, static_argnums=2)(ws, stats, cfg)
    for w, (leaf, info) in zip(ws, together, strict=True):
        alone, own = run(w, stats, cfg=cfg)
        np.testing.assert_array_equal(unpack_codes(leaf), unpack_codes(alone))
        np.testing.assert_allclose(info.error, own.error, rtol=1e-4)


def test_target_minimises_the_asymmetric_error_before_rounding():
    """At 8 bits, rounding adds a few percent and the rest is the least-squares solution onto the original output."""
    stats, x_q = correlated(24, tokens=300)
    mix, noise = (jax.random.normal(jax.random.key(k), s) for k, s in ((1, (24, 24)), (2, x_q.shape)))
    x_fp = x_q + 0.1 * x_q @ mix + 0.1 * noise
    w = weight(24, 6)
    stats = dataclasses.replace(stats, dxxt=(x_fp - x_q).T @ x_q)
    cfg = GPTQ(bits=8, group=8, asymmetric="target", alpha=1.0, damp=1e-6)
    leaf, _ = run(w, stats, cfg=cfg)
    best = np.linalg.lstsq(np.asarray(x_q, np.float64), np.asarray(x_fp @ w, np.float64), rcond=None)[0]

    def asymmetric(q):
        return float(np.sum((np.asarray(x_q, np.float64) @ q - np.asarray(x_fp @ w, np.float64)) ** 2))

    assert asymmetric(np.asarray(dense(leaf))) < asymmetric(best) * 1.1
    assert asymmetric(np.asarray(w)) > asymmetric(best) * 1.2


def test_both_asymmetric_modes_come_closer_to_the_original_output():
    """Over four problems in which the compressed prefix has moved the inputs a little."""
    modes = (("none", 0.0), ("gptaq", 0.25), ("target", 1.0))
    totals = np.zeros(3)
    for seed in range(4):
        stats, x_q = correlated(24, tokens=300, seed=seed)
        mix, noise = (jax.random.normal(jax.random.key(k + 10 * seed), s) for k, s in ((1, (24, 24)), (2, x_q.shape)))
        x_fp, w = x_q + 0.05 * x_q @ mix + 0.05 * noise, weight(24, 6, seed=seed + 9)
        stats = dataclasses.replace(stats, dxxt=(x_fp - x_q).T @ x_q)
        for at, (mode, alpha) in enumerate(modes):
            leaf, _ = run(w, stats, cfg=GPTQ(bits=3, group=8, asymmetric=mode, alpha=alpha))
            totals[at] += float(jnp.sum((x_q @ dense(leaf) - x_fp @ w) ** 2))
    assert totals[2] < totals[1] < totals[0]


def test_alpha_zero_is_plain():
    stats, x = correlated(32)
    stats = dataclasses.replace(stats, dxxt=0.1 * stats.xtx)
    plain, _ = run(weight(32, 8), stats, cfg=GPTQ(bits=3, group=16))
    for mode in ("gptaq", "target"):
        other, _ = run(weight(32, 8), stats, cfg=GPTQ(bits=3, group=16, asymmetric=mode, alpha=0.0))
        np.testing.assert_array_equal(unpack_codes(plain), unpack_codes(other))


def test_first_order_term_changes_the_sweep():
    stats, _ = correlated(32)
    plain, _ = run(weight(32, 8), stats, cfg=GPTQ(bits=3, group=16))
    other, info = run(weight(32, 8), stats, cfg=GPTQ(bits=3, group=16, foem_beta=0.1))
    assert bool(jnp.any(unpack_codes(plain) != unpack_codes(other)))
    assert float(info.error) < float(info.rounding_error)


def test_merged_halves_give_the_same_codes():
    _, x = correlated(48)
    halves = [Record(count=jnp.float32(200), xtx=h.T @ h) for h in (x[:200], x[200:])]
    whole = Record(count=jnp.float32(400), xtx=x.T @ x)
    one, _ = run(weight(48, 8), merge(*halves), cfg=GPTQ(bits=3, group=16))
    other, _ = run(weight(48, 8), whole, cfg=GPTQ(bits=3, group=16))
    assert float(jnp.mean(unpack_codes(one) == unpack_codes(other))) > 0.995


def test_short_last_group_and_its_size():
    stats, _ = correlated(72)
    leaf, info = run(weight(72, 32), stats, cfg=GPTQ(bits=3, group=32))
    assert leaf.scale.shape == (3, 32)
    assert float(info.error) < float(info.rounding_error)
    # 96 packed rows of 3 bits, and 3 groups of a 16-bit scale and a 3-bit zero.
    assert nbits(leaf) == 32 * (96 * 3 + 3 * 19)
    assert size(leaf) == 72 * 32


def test_group_index_only_for_dynamic_act_order():
    stats, _ = correlated(64)
    leaf, _ = run(weight(64, 8), stats, cfg=GPTQ(bits=3, group=16, static_groups=False))
    assert isinstance(leaf, Affine) and leaf.g_idx is not None
    assert np.bincount(np.asarray(leaf.g_idx)).tolist() == [16] * 4


@pytest.mark.slow
def test_kmeans_levels_beat_uniform_ones_and_refits_help():
    stats, _ = correlated(96)
    w = weight(96, 32)
    uniform, plain = run(w, stats, cfg=GPTQ(bits=3, group=-1))
    none, first = run(w, stats, cfg=GPTQ(bits=3, group=-1, levels="kmeans", refits=0))
    two, refitted = run(w, stats, cfg=GPTQ(bits=3, group=-1, levels="kmeans", refits=2))
    assert isinstance(two, Codebook)
    assert float(refitted.error) < float(first.error) < float(plain.error)
    assert int(jnp.max(unpack_indices(two))) <= 7
    assert bool(jnp.all(jnp.diff(two.levels.astype(jnp.float32), axis=-2) >= 0))


def test_ternary_has_three_levels_with_zero():
    stats, _ = correlated(64)
    leaf, _ = run(weight(64, 8), stats, cfg=GPTQ(bits=2, group=16, levels="ternary"))
    assert leaf.levels.shape == (4, 3, 8)
    np.testing.assert_array_equal(leaf.levels[:, 1], 0)


def test_trace_does_not_grow_with_width():
    def lines(width):
        stats = Record(
            count=jax.ShapeDtypeStruct((), jnp.float32), xtx=jax.ShapeDtypeStruct((width, width), jnp.float32)
        )
        w = jax.ShapeDtypeStruct((width, 16), jnp.float32)
        return str(jax.make_jaxpr(lambda w, s: gptq(w, s, GPTQ(bits=3, group=16)))(w, stats)).count(" = ")

    assert lines(64) == lines(256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 9}, r"GPTQ.bits must be in 2\.\.8, got 9"),
        ({"bits": 1}, "GPTQ.bits"),
        ({"group": 0}, "GPTQ.group must be -1"),
        ({"order": "random"}, "GPTQ.order must be one of"),
        ({"grid": "fine"}, "GPTQ.grid must be one of"),
        ({"damp": 0.0}, "GPTQ.damp must be > 0"),
        ({"block": 0}, "GPTQ.block must be >= 1"),
        ({"asymmetric": "v2"}, "GPTQ.asymmetric must be one of"),
        ({"levels": "ternary", "bits": 3}, "bits must be 2, got 3"),
        ({"levels": "kmeans", "sym": True}, "no symmetric form"),
        ({"levels": "kmeans", "static_groups": False}, "needs static_groups=True"),
        ({"scale_dtype": "int8"}, "scale_dtype must be"),
        ({"mse_max_shrink": 1.5}, "mse_max_shrink"),
    ],
)
def test_config_refusals(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTQ(**fields)


def test_call_refusals():
    stats, _ = correlated(16)
    with pytest.raises(ValueError, match="needs record.dxxt"):
        gptq(weight(16, 4), stats, GPTQ(asymmetric="gptaq"))
    with pytest.raises(ValueError, match=r"Hessian is for 16 inputs, weights have \[24\]"):
        gptq(weight(24, 4), stats, GPTQ())
    with pytest.raises(ValueError, match="xtx is missing"):
        gptq(weight(16, 4), Record(count=jnp.float32(1)), GPTQ())
