"""Atomic feature mimicking of layers and tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.calibration.records import merge
from compressjax.driver import leaf_rule
from compressjax.factorization import SVD, lowrank, lowrank_with_info, with_mean_shift
from compressjax.factorization.afm import AFM, rank_for_variance, record_of_counts, table_record
from compressjax.factorization.afm_ctr import afm_linear, svd_linear
from compressjax.leaf import LowRank, Shifted
from compressjax.numerics import large_svd
from compressjax.ops import dense, nbits, take

IN, OUT, TOKENS, ROWS, WIDTH = 9, 7, 160, 40, 6


def layer_problem(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TOKENS, IN)) @ (rng.normal(size=(IN, IN)) * np.logspace(0, -1, IN)) + 0.8
    x = jnp.asarray(x, jnp.float32)
    w, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((IN, OUT), OUT))
    return w, b, x, Record(count=jnp.float32(TOKENS), xtx=x.T @ x, x_sum=x.sum(0), abs_sum=jnp.abs(x).sum(0))


def table_problem(seed=0):
    rng = np.random.default_rng(seed)
    table = (
        rng.normal(size=(ROWS, WIDTH)) * np.logspace(0, -1, WIDTH) @ np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    )
    ids = rng.zipf(1.3, size=500) % ROWS
    return jnp.asarray(table + 0.5, jnp.float32), ids


def mimic(thin, x):
    return (x @ thin.first + thin.first_bias[None]) @ thin.second + thin.second_bias[None]


@pytest.mark.parametrize("rank", [1, 3, OUT])
def test_a_layer_leaves_the_trailing_variance(rank):
    w, b, x, record = layer_problem()
    y = np.asarray(x @ w + b[None], np.float64)
    values = np.linalg.svd(y - y.mean(0), compute_uv=False) ** 2
    thin = afm_linear(w, b, record, rank)
    left = float(jnp.sum((mimic(thin, x) - y) ** 2))
    assert left == pytest.approx(values[rank:].sum(), rel=1e-2, abs=1e-4 * values.sum())
    assert rank == OUT or left < 0.9 * float(jnp.sum((mimic(svd_linear(w, b, rank), x) - y) ** 2))
    np.testing.assert_allclose(mimic(thin, x).mean(0), y.mean(0), atol=1e-3)
    assert float(jnp.min(x.mean(0)[None] @ thin.first + thin.first_bias[None])) > -1e-3


def test_the_verb_and_the_pair_of_layers_are_one_map():
    w, b, x, record = layer_problem()
    params, stats = {"a": {"kernel": w, "bias": b}}, {"a/kernel": record}
    small = with_mean_shift(params, lowrank(params, AFM(rank=3, dtype="float32"), stats=stats), stats)
    assert isinstance(small["a"]["kernel"], LowRank)
    y = x @ dense(small["a"]["kernel"]) + small["a"]["bias"][None]
    np.testing.assert_allclose(y, mimic(afm_linear(w, b, record, 3), x), atol=2e-3)


def test_a_rectifier_between_is_another_map_and_signs_favour_it():
    w, b, x, record = layer_problem()
    thin = afm_linear(w, b, record, 3)
    codes = x @ thin.first + thin.first_bias[None]
    y = jax.nn.relu(codes) @ thin.second + thin.second_bias[None]
    assert float(jnp.abs(y - mimic(thin, x)).max()) > 0.1
    flipped = jax.nn.relu(-codes) @ -thin.second + thin.second_bias[None]
    truth = x @ w + b[None]
    assert float(jnp.sum((y - truth) ** 2)) < float(jnp.sum((flipped - truth) ** 2))


@pytest.mark.parametrize("weighting", ["frequency", "uniform"])
@pytest.mark.parametrize("large", [False, True])
def test_a_table_is_the_components_of_its_look_ups(weighting, large, monkeypatch):
    if large:
        monkeypatch.setattr("compressjax.factorization.afm.is_large", lambda shape, rank: True)
        monkeypatch.setattr(large_svd, "_BLOCK", 13 * WIDTH)
    table, ids = table_problem()
    leaf, info = leaf_rule(table, AFM(rank=2, weighting=weighting, dtype="float32"), table_record(ids, ROWS), None)
    assert isinstance(leaf, Shifted) and nbits(leaf) == 32 * (2 * (ROWS + WIDTH) + WIDTH)
    seen = np.asarray(table, np.float64)[ids if weighting == "frequency" else slice(None)]
    values, vectors = np.linalg.eigh(np.cov(seen.T, bias=True))
    np.testing.assert_allclose(leaf.shift, seen.mean(0), atol=1e-5)
    project = vectors[:, -2:] @ vectors[:, -2:].T
    wanted = (np.asarray(table) - seen.mean(0)) @ project + seen.mean(0)
    np.testing.assert_allclose(dense(leaf), wanted, atol=1e-3)
    np.testing.assert_allclose(take(leaf, jnp.asarray([3, 3, 0])), wanted[[3, 3, 0]], atol=1e-3)
    miss = np.asarray(dense(leaf) - table)[ids]
    assert float(info.error) == pytest.approx(np.sum(miss**2), rel=1e-2)
    assert float(info.energy) == pytest.approx(np.sum(np.asarray(table)[ids] ** 2), rel=1e-3)
    if weighting == "frequency":
        assert float(info.error) == pytest.approx(values[:-2].sum() * len(ids), rel=1e-2)
        assert float(info.error) < float(info.rounding_error)


def test_frequency_gives_up_rare_rows_for_frequent_ones():
    table, ids = table_problem()
    record = table_record(ids, ROWS)
    lost = {}
    for weighting in ("frequency", "uniform"):
        leaf, _ = leaf_rule(table, AFM(rank=2, weighting=weighting, dtype="float32"), record, None)
        miss = jnp.sum((dense(leaf) - table) ** 2, axis=1)
        lost[weighting] = float(jnp.sum(record.x_sum * miss)), float(jnp.sum(miss))
    assert lost["frequency"][0] < lost["uniform"][0] and lost["frequency"][1] > lost["uniform"][1]


def test_full_rank_restores_tables_and_layers():
    table, ids = table_problem()
    w, b, x, record = layer_problem()
    params = {"embed": {"embedding": table}, "a": {"kernel": w}}
    stats = {"embed/embedding": table_record(ids, ROWS), "a/kernel": record}
    rules = {"embed/embedding": AFM(rank=WIDTH, dtype="float32"), "**": AFM(rank=OUT, dtype="float32")}
    small, infos = lowrank_with_info(params, rules, stats=stats)
    np.testing.assert_allclose(dense(small["embed"]["embedding"]), table, atol=1e-4)
    np.testing.assert_allclose(dense(small["a"]["kernel"]), w, atol=1e-4)
    assert set(infos) == {"embed/embedding", "a/kernel"}


def test_records_of_parts_add_up():
    _, ids = table_problem()
    whole, parts = table_record(ids, ROWS), merge(table_record(ids[:200], ROWS), table_record(ids[200:], ROWS))
    np.testing.assert_array_equal(whole.x_sum, parts.x_sum)
    assert float(whole.count) == float(parts.count) == len(ids)
    np.testing.assert_array_equal(record_of_counts(np.bincount(ids, minlength=ROWS)).x_sum, whole.x_sum)


def test_the_rank_that_keeps_a_share():
    table, ids = table_problem()
    values = np.linalg.eigvalsh(np.cov(np.asarray(table, np.float64)[ids].T, bias=True))[::-1]
    held = np.cumsum(values) / values.sum()
    for rank in (1, 3):
        assert rank_for_variance(table, table_record(ids, ROWS), float(held[rank - 1]) - 1e-3) == rank
    assert rank_for_variance(table, table_record(ids, ROWS), 1.0) <= WIDTH
    w, b, x, record = layer_problem()
    values = np.linalg.eigvalsh(np.cov(np.asarray(x @ w, np.float64).T, bias=True))[::-1]
    share = float(values[:2].sum() / values.sum())
    assert rank_for_variance(w, record, share - 1e-3) == 2


def test_gradients_reach_every_part_of_a_table():
    table, ids = table_problem()
    leaf, _ = leaf_rule(table, AFM(rank=2, dtype="float32"), table_record(ids, ROWS), None)
    grads = jax.grad(lambda leaf: jnp.sum(jnp.sin(take(leaf, jnp.arange(5)))))(leaf)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_bad_input_is_refused():
    table, ids = table_problem()
    with pytest.raises(ValueError, match="AFM.weighting must be 'frequency' or 'uniform', got 'tail'"):
        AFM(weighting="tail")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"ids must be in 0..39 and at least one, got \d+..40"):
        table_record([*ids, ROWS], ROWS)
    with pytest.raises(ValueError, match="got none"):
        table_record(np.zeros(0, np.int32), ROWS)
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        table_record([0.5], ROWS)
    with pytest.raises(ValueError, match="counts must be"):
        record_of_counts([1.0, -1.0])
    with pytest.raises(ValueError, match="not all 0"):
        record_of_counts(np.zeros(4))
    with pytest.raises(ValueError, match=r"AFM.rank must be at most 6 for a weight \(40, 6\), got 7"):
        leaf_rule(table, AFM(rank=7), table_record(ids, ROWS), None)
    with pytest.raises(ValueError, match=r"a table of 40 rows needs as many counts, got \(41,\)"):
        leaf_rule(table, AFM(rank=2), table_record(ids, ROWS + 1), None)
    with pytest.raises(ValueError, match="AFM needs HessianAndMoments statistics of embed/embedding"):
        lowrank({"embed": {"embedding": table}}, {"embed/embedding": AFM(rank=2)})
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 0"):
        rank_for_variance(table, table_record(ids, ROWS), 0)
    w, b, _, record = layer_problem()
    with pytest.raises(ValueError, match=r"rank must be in 1..7 for a layer \(9, 7\), got 8"):
        afm_linear(w, b, record, 8)
    with pytest.raises(ValueError, match="of at least two inputs"):
        afm_linear(w, b, Record(count=jnp.float32(1), xtx=record.xtx, x_sum=record.x_sum), 2)
    assert isinstance(leaf_rule(table, SVD(rank=2), None, None)[0], LowRank)
