"""SVD, LoRD and EoRA on matrices small enough for oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.driver import compress_group, leaf_rule
from compressjax.factorization import SVD, EoRA, LoRD, break_even_rank, compensate, eora, lowrank, with_mean_shift
from compressjax.leaf import Affine, LowRank, Sum
from compressjax.numerics.linalg import quadratic
from compressjax.numerics.whitened_svd import scaled_fit, whiten, whitened_fit
from compressjax.ops import dense, nbits
from compressjax.quantization import GPTQ, RTN, quantize

IN, OUT, TOKENS = 12, 10, 200


def problem(seed=0, rank=IN, mean=0.0):
    """A weight, its inputs and their record."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, rank)) @ (rng.normal(size=(rank, IN)) * np.logspace(0, -1, IN)) + mean
    x = jnp.asarray(x, jnp.float32)
    w = jnp.asarray(rng.normal(size=(IN, OUT)), jnp.float32)
    record = Record(
        count=jnp.float32(TOKENS), xtx=x.T @ x, x_sum=x.sum(0), abs_sum=jnp.abs(x).sum(0), abs_max=jnp.abs(x).max(0)
    )
    return w, x, record


def loss(w, fit, record):
    return float(quadratic(w - fit, record.xtx))


def product(fit):
    return fit.left @ fit.right


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_fit_loses_the_values_it_leaves_and_no_other_product_loses_less(rank):
    w, _, record = problem()
    fit = whitened_fit(w, whiten(record.xtx), rank)
    best = loss(w, product(fit), record)
    assert best == pytest.approx(float(jnp.sum(fit.values[rank:] ** 2)), rel=1e-3)
    rng = np.random.default_rng(1)
    for _ in range(50):
        nudge = [jnp.asarray(rng.normal(size=a.shape) * 10 ** rng.uniform(-3, 0), jnp.float32) for a in fit[:2]]
        assert loss(w, (fit.left + nudge[0]) @ (fit.right + nudge[1]), record) >= best * (1 - 1e-4)
    assert best < loss(w, product(scaled_fit(w, record.abs_sum, rank)), record)
    assert best < loss(w, product(scaled_fit(w, None, rank)), record)


def test_the_square_root_of_the_second_moment_does_not_matter():
    w, _, record = problem()
    root = jnp.linalg.cholesky(record.xtx)
    left, values, right = jnp.linalg.svd(root.T @ w, full_matrices=False)
    other = jnp.linalg.solve(root.T, left[:, :4] * values[:4][None]) @ right[:4]
    np.testing.assert_allclose(product(whitened_fit(w, whiten(record.xtx), 4)), other, atol=2e-3)
    scaled = product(whitened_fit(w, whiten(1e-6 * record.xtx), 4))
    np.testing.assert_allclose(scaled, product(whitened_fit(w, whiten(record.xtx), 4)), atol=2e-3)
    np.testing.assert_allclose(
        product(whitened_fit(w, whiten(3 * jnp.eye(IN)), 4)), product(scaled_fit(w, None, 4)), atol=1e-4
    )


def test_inputs_that_span_few_directions_give_finite_factors_that_are_still_best():
    w, x, record = problem(rank=4)
    x = x.at[:, 2].set(0)
    record = dataclasses.replace(record, xtx=x.T @ x)
    white = whiten(record.xtx)
    assert int(white.rank) <= 4
    fit = whitened_fit(w, white, 3)
    assert bool(jnp.all(jnp.isfinite(fit.left))) and float(jnp.abs(fit.left[2]).max()) < 1e-5
    assert loss(w, product(fit), record) == pytest.approx(float(jnp.sum(fit.values[3:] ** 2)), rel=1e-2)


@pytest.mark.parametrize("center", [False, True])
def test_lord_projects_on_the_outputs_components(center):
    w, x, record = problem(mean=0.7)
    cfg = LoRD(rank=4, center=center, require_saving=False, dtype="float32")
    leaf, info = leaf_rule(w, cfg, record, None)
    y = np.asarray(x @ w, np.float64)
    shift = y.mean(0) if center else 0.0
    values, vectors = np.linalg.eigh((y - shift).T @ (y - shift))
    basis = vectors[:, -4:]
    np.testing.assert_allclose(dense(leaf), np.asarray(w) @ basis @ basis.T, atol=2e-3)
    if not center:
        assert float(info.error) == pytest.approx(values[:-4].sum(), rel=1e-2)
        assert float(info.error) < float(info.rounding_error)


def test_lord_without_centring_is_eora_of_the_whole_weight():
    w, _, record = problem()
    lord = leaf_rule(w, LoRD(rank=4, require_saving=False, dtype="float32"), record, None)[0]
    path = eora(w, jnp.zeros_like(w), record, EoRA(rank=4, dtype="float32"))
    np.testing.assert_allclose(dense(lord), dense(path), atol=2e-3)


def test_the_mean_shift_makes_the_centred_fit_the_best_affine_map():
    w, x, record = problem(mean=2.0)
    params = {"a": {"kernel": w, "bias": jnp.ones(OUT)}}
    error = {}
    for center in (False, True):
        cfg = LoRD(rank=3, center=center, require_saving=False, dtype="float32")
        small = with_mean_shift(params, lowrank(params, cfg, stats={"a/kernel": record}), {"a/kernel": record})
        y, z = x @ w + params["a"]["bias"][None], x @ dense(small["a"]["kernel"]) + small["a"]["bias"][None]
        np.testing.assert_allclose(jnp.mean(z, axis=0), jnp.mean(y, axis=0), atol=1e-3)
        error[center] = float(jnp.sum((y - z) ** 2))
    y = np.asarray(x @ w, np.float64)
    assert error[True] == pytest.approx(
        np.linalg.svd(y - y.mean(0))[1][3:] @ np.linalg.svd(y - y.mean(0))[1][3:], rel=1e-2
    )
    assert error[True] <= error[False]
    with pytest.raises(ValueError, match="a/kernel has no bias"):
        bare = {"a": {"kernel": w}}
        with_mean_shift(bare, lowrank(bare, SVD(rank=3)), {"a/kernel": record})


@pytest.mark.parametrize("rows, cols", [(576, 576), (576, 192), (5, 3), (2, 1)])
def test_break_even_rank_is_the_last_that_saves(rows, cols):
    rank = break_even_rank(rows, cols)
    assert rank * (rows + cols) < rows * cols <= (rank + 1) * (rows + cols)


def test_weights_that_would_grow_stay_dense_and_reductions_give_ranks():
    w, _, record = problem()
    kept, info = leaf_rule(w, LoRD(reduction=0.2, multiple=2), record, None)
    assert kept is w and info is None
    leaf = leaf_rule(w, LoRD(reduction=0.6, multiple=2), record, None)[0]
    assert isinstance(leaf, LowRank) and leaf.left.shape == (IN, 4)
    assert nbits(leaf) == 16 * 4 * (IN + OUT)


def test_full_rank_and_every_direction_seen_restore_the_weight():
    w, _, record = problem()
    rough = quantize({"a": {"kernel": w}}, RTN(bits=2, group=-1))["a"]["kernel"]
    np.testing.assert_allclose(dense(eora(w, rough, record, EoRA(rank=OUT, dtype="float32"))), w, atol=2e-3)


def test_eora_repairs_a_method_and_shares_one_eigendecomposition():
    w, _, record = problem()
    cfg = EoRA(base=GPTQ(bits=2, group=-1), rank=2)
    (first, info), (second, _) = compress_group((w, -w), cfg, record)
    assert isinstance(first, Sum) and isinstance(first.parts[0], Affine) and isinstance(first.parts[1], LowRank)
    assert float(info.error) < float(info.rounding_error)
    np.testing.assert_allclose(dense(first), dense(leaf_rule(w, cfg, record, None)[0]), atol=1e-5)
    assert not np.allclose(dense(first), dense(second))
    text = str(jax.make_jaxpr(lambda *a: [dense(leaf) for leaf, _ in compress_group(a, cfg, record)])(w, -w))
    assert text.count(" eigh[") == 1


def test_paths_are_ordered_as_in_the_paper_on_weights_compressed_already():
    params = {"a": {"kernel": jnp.stack([problem(seed)[0] for seed in range(4)])}}
    records = [problem(seed)[2] for seed in range(4)]
    stats = {"a/kernel": jax.tree.map(lambda *r: jnp.stack(r), *records)}
    rough = quantize(params, RTN(bits=2, group=-1))
    found = {}
    for scale in ("none", "act", "whiten"):
        repaired = compensate(params, rough, EoRA(rank=3, scale=scale), stats=stats)["a"]["kernel"]
        miss = params["a"]["kernel"] - dense(repaired)
        found[scale] = sum(float(quadratic(m, r.xtx)) for m, r in zip(miss, records, strict=True))
    assert found["whiten"] < found["act"] < found["none"]


@pytest.mark.parametrize("factors", [RTN(bits=4, group=-1), GPTQ(bits=4, group=-1)], ids=["rtn", "gptq"])
def test_factors_can_be_compressed_themselves(factors):
    w, _, record = problem()
    rough = quantize({"a": {"kernel": w}}, RTN(bits=2, group=-1))["a"]["kernel"]
    wide, thin = (eora(w, rough, record, EoRA(rank=4, factors=how)) for how in (None, factors))
    assert isinstance(thin.parts[1].left, Affine)
    plain = loss(w, dense(rough), record)
    gain = [plain - loss(w, dense(leaf), record) for leaf in (wide, thin)]
    assert gain[1] > 0.8 * gain[0] > 0


def test_gradients_reach_both_factors():
    w, x, record = problem()
    leaf = eora(w, jnp.zeros_like(w), record, EoRA(rank=2, dtype="float32"))
    grad = jax.grad(lambda path: jnp.sum((x @ dense(path)) ** 2))(leaf.parts[1])
    assert float(jnp.abs(grad.left).min(axis=0).max()) > 0 and float(jnp.abs(grad.right).max()) > 0


def test_bad_input_is_refused_by_name():
    w, _, record = problem()
    params = {"a": {"kernel": w}}
    with pytest.raises(ValueError, match=r"LoRD.reduction must be in \[0, 1\), got 1"):
        LoRD(reduction=1)
    with pytest.raises(ValueError, match=r"SVD.rank must be at most 10 for a weight \(12, 10\), got 11"):
        lowrank(params, SVD(rank=11))
    with pytest.raises(ValueError, match=r"EoRA.rank must be an integer >= 1, got 0"):
        EoRA(rank=0)
    with pytest.raises(TypeError, match="EoRA.base must be a method"):
        EoRA(base="gptq")
    with pytest.raises(ValueError, match="EoRA.base names the method to repair"):
        lowrank(params, EoRA(), stats={"a/kernel": record})
    with pytest.raises(ValueError, match="compressed holds no compressed weight"):
        compensate(params, params, EoRA(), stats={"a/kernel": record})
    with pytest.raises(ValueError, match="EoRA needs Hessian statistics of a/kernel"):
        compensate(params, quantize(params, RTN(bits=2, group=-1)), EoRA(), stats={})
    with pytest.raises(ValueError, match="SVD.scale='act' needs Moments"):
        leaf_rule(w, SVD(rank=2, scale="act"), None, None)
