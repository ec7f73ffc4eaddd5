import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.factorization import BitStack, bitstack, lowrank, lowrank_with_info
from compressjax.factorization.bitstack import exact_factors, first_basis, magnitude_factors
from compressjax.leaf.sign_lowrank import unpack_block, with_loaded
from compressjax.ops import dense

run = jax.jit(bitstack, static_argnames="cfg")


@functools.cache
def problem(rows=48, cols=20, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(rows, cols)) * rng.gamma(2.0, size=(rows, 1))
    return jnp.asarray(w, jnp.float32), jnp.asarray(rng.gamma(2.0, size=rows) + 0.1, jnp.float32)


def norm(a):
    return float(np.linalg.norm(np.asarray(a, np.float64)))


@pytest.mark.parametrize("svd", ["exact", "subspace"])
def test_each_level_takes_the_energy_of_its_singular_values(svd):
    w, _ = problem()
    cfg = BitStack(levels=1, rank=2, svd=svd, power_steps=30, factor_dtype="float32")
    residual = w
    for _ in range(3):
        _, after = run(residual, cfg=cfg)
        taken = np.linalg.svd(np.abs(np.asarray(residual, np.float64)), compute_uv=False)[:2]
        np.testing.assert_allclose(norm(after) ** 2, norm(residual) ** 2 - np.sum(taken**2), rtol=1e-3)
        assert norm(after) < norm(residual)
        residual = after


def test_the_carried_residual_is_what_the_stored_blocks_leave():
    w, scale = problem()
    target = w * scale.astype(jnp.float16).astype(jnp.float32)[:, None]
    leaf, _ = run(w, cfg=BitStack(levels=4, rank=2), scale=scale)
    for levels in (2, 4):
        short, residual = run(w, cfg=BitStack(levels=levels, rank=2), scale=scale)
        blocks = sum(unpack_block(leaf, j) for j in range(levels))
        np.testing.assert_allclose(target - blocks, residual, atol=1e-6 * norm(target))
        np.testing.assert_allclose(dense(with_loaded(leaf, levels)), dense(short), atol=1e-6)


def test_subtracting_unrounded_factors_would_leave_another_residual():
    w, _ = problem()
    leaf, residual = run(w, cfg=BitStack(levels=1, rank=2, svd="exact"))
    found = exact_factors(jnp.abs(w), 2)
    unrounded = w - jnp.where(w >= 0, 1.0, -1.0) * (found.u @ found.v)
    stored = w - unpack_block(leaf, 0)
    assert norm(stored - residual) < 1e-6 * norm(w) < 1e-4 * norm(w) < norm(stored - unrounded)


def test_full_rank_leaves_the_rounding_of_the_factors():
    w, scale = problem()
    leaf, _ = run(w, cfg=BitStack(levels=1, rank=20, svd="exact"), scale=scale)
    assert norm(dense(leaf) - w) < 2e-3 * norm(w)
    again, _ = run(w, cfg=BitStack(levels=3, rank=20, svd="exact"), scale=scale)
    assert norm(dense(again) - w) < 0.1 * norm(dense(leaf) - w)  # later levels repair the rounding of earlier ones


@pytest.mark.parametrize("rank", [1, 3])
def test_exact_factors_are_the_best_of_their_rank(rank):
    magnitude = np.abs(np.asarray(problem()[0], np.float64))
    found = exact_factors(jnp.asarray(magnitude, jnp.float32), rank)
    values = np.linalg.svd(magnitude, compute_uv=False)
    np.testing.assert_allclose(norm(magnitude - np.asarray(found.u @ found.v)), norm(values[rank:]), rtol=1e-4)
    assert float(found.u[:, 0].min()) >= -1e-5 and float(found.v[0].min()) >= -1e-5
    np.testing.assert_allclose(jnp.sum(found.u**2, axis=0), jnp.sum(found.v**2, axis=1), rtol=1e-4)


def test_subspace_iteration_is_within_a_hundredth_of_exact():
    w = jnp.asarray(np.random.default_rng(3).standard_t(4, size=(96, 64)), jnp.float32)
    near = magnitude_factors(jnp.abs(w), 4, first_basis(4, *w.shape), 4)
    best = exact_factors(jnp.abs(w), 4)
    error, least = (norm(jnp.abs(w) - f.u @ f.v) for f in (near, best))
    assert least <= error * (1 + 1e-6) and error < 1.01 * least
    assert float(near.u[:, 0].min()) > 0  # the Perron vector of a positive matrix


def test_zeros_stay_zeros():
    cfg = BitStack(levels=2, rank=2)
    leaf, residual = run(jnp.zeros((48, 20)), cfg=cfg)
    np.testing.assert_array_equal(dense(leaf), np.zeros((48, 20)))
    np.testing.assert_array_equal(residual, np.zeros((48, 20)))
    half = jnp.zeros((48, 20)).at[::2].set(1.0)
    np.testing.assert_allclose(dense(run(half, cfg=cfg)[0]), half, atol=1e-3)


def test_scaling_moves_error_away_from_inputs_that_matter():
    w, _ = problem()
    scale = jnp.where(jnp.arange(48) < 8, 30.0, 1.0)
    plain, scaled = (run(w, cfg=BitStack(levels=2, rank=2), scale=s)[0] for s in (jnp.ones(48), scale))
    assert norm((dense(scaled) - w)[:8]) < 0.5 * norm((dense(plain) - w)[:8])


def test_the_verb_says_its_error():
    w, _ = problem()
    small, infos = lowrank_with_info({"a": {"kernel": w}}, BitStack(levels=3, rank=2, scale="none"))
    np.testing.assert_allclose(infos["a/kernel"].error, norm(w - dense(small["a"]["kernel"])) ** 2, rtol=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": 0}, "BitStack.rank must be an integer >= 1, got 0"),
        ({"levels": 0}, "BitStack.levels must be an integer >= 1, got 0"),
        ({"levels": True}, "BitStack.levels must be an integer >= 1, got True"),
        ({"power_steps": 0}, "BitStack.power_steps must be an integer >= 1"),
        ({"scale": "max"}, "BitStack.scale must be 'rownorm', 'rms', 'mean_abs' or 'none', got 'max'"),
        ({"eps": 0.0}, "BitStack.eps must be finite and > 0, got 0.0"),
        ({"eps": float("nan")}, "BitStack.eps must be finite and > 0, got nan"),
        ({"svd": "fast"}, "BitStack.svd must be 'subspace' or 'exact', got 'fast'"),
        ({"factor_dtype": "int8"}, "BitStack.factor_dtype must be float16, bfloat16 or float32, got 'int8'"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        BitStack(**fields)


def test_bad_weights_and_scales_are_refused():
    w, _ = problem()
    with pytest.raises(ValueError, match=r"BitStack.rank must be at most 20 for a weight \(48, 20\), got 21"):
        bitstack(w, BitStack(rank=21))
    with pytest.raises(ValueError, match=r"scale must have shape \(48,\), got \(20,\)"):
        bitstack(w, BitStack(rank=2), jnp.ones(20))
    with pytest.raises(TypeError, match="BitStack quantises dense weights, got a SignLowRank"):
        leaf, _ = bitstack(w, BitStack(levels=1, rank=1))
        lowrank({"a": {"kernel": leaf}}, BitStack(levels=1, rank=1, scale="none"))
