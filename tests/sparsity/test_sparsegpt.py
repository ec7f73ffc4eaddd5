"""Pruning with compensation: exact counts, a loop as oracle, and no worse than leaving the rest alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Hessian, Record, measure
from compressjax.leaf import Masked, pack_masked
from compressjax.leaf.masked import kept
from compressjax.numerics.linalg import quadratic
from compressjax.ops import dense, nbits
from compressjax.sparsity import SparseGPT, sparsegpt
from compressjax.sparsity.sparsegpt import dropped_by_block

IN, OUT = 40, 12


def problem(seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(200, IN)) @ rng.normal(size=(IN, IN)) / 6).astype(np.float32)
    return jnp.asarray(rng.normal(size=(IN, OUT)), jnp.float32), measure(Hessian(), jnp.asarray(x))


run = jax.jit(sparsegpt, static_argnames="cfg")


def by_loop(w, h, sparsity, damp):
    """Column by column in float64, the mask of the whole matrix chosen beforehand."""
    w, h = np.array(w, np.float64), np.array(h, np.float64)
    h = h + damp * np.mean(np.diag(h)) * np.eye(IN)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    score = w**2 / np.diag(u)[:, None] ** 2
    keep = np.ones(w.size, bool)
    keep[np.argsort(score.ravel())[: round(sparsity * w.size)]] = False
    keep = keep.reshape(w.shape)
    for i in range(IN):
        e = np.where(keep[i], 0, w[i]) / u[i, i]
        w[i + 1 :] -= u[i, i + 1 :, None] * e[None]
        w[i] = np.where(keep[i], w[i], 0)
    return w, keep


def test_equals_the_loop():
    w, record = problem()
    leaf, _ = run(w, record, cfg=SparseGPT(sparsity=0.6, dtype="float32"))
    expected, keep = by_loop(w, record.xtx, 0.6, 0.01)
    np.testing.assert_array_equal(kept(leaf), keep)
    np.testing.assert_allclose(dense(leaf), expected, atol=2e-4)


@pytest.mark.parametrize(
    "cfg", [SparseGPT(sparsity=0.37), SparseGPT(block=16), SparseGPT(extra=-100), SparseGPT(extra=77)]
)
def test_as_many_go_as_are_asked_for(cfg):
    w, record = problem()
    leaf, info = run(w, record, cfg=cfg)
    gone = sum(dropped_by_block((IN, OUT), cfg))
    assert gone == round(cfg.sparsity * 480) + cfg.extra or cfg.block == 16
    assert leaf.values.shape == (480 - gone,) and int(kept(leaf).sum()) == 480 - gone
    assert nbits(leaf) == 16 * (480 - gone) + 64 * OUT  # 40 rows of bits are padded to 64
    assert float(info.error) < float(info.rounding_error)


def test_blocks_lose_the_same_share_each():
    w, record = problem()
    cfg = SparseGPT(block=16)
    keep = np.asarray(kept(run(w, record, cfg=cfg)[0]))
    assert dropped_by_block((IN, OUT), cfg) == (96, 96, 48)
    assert [int((~keep[at : at + 16]).sum()) for at in (0, 16, 32)] == [96, 96, 48]


def test_compensation_lowers_the_output_error():
    w, record = problem()
    errors = {}
    for name, cfg in {
        "compensated": SparseGPT(),
        "wanda": SparseGPT(score="wanda", compensate=False),
        "magnitude": SparseGPT(score="magnitude", compensate=False),
    }.items():
        leaf, info = run(w, record, cfg=cfg)
        errors[name] = float(quadratic(w - dense(leaf), record.xtx))
        assert float(info.error) == pytest.approx(errors[name], rel=1e-3)
    assert errors["compensated"] < 0.95 * errors["wanda"] < errors["magnitude"]


def test_nothing_dropped_is_the_weight_and_all_but_everything_is_zero():
    w, record = problem()
    whole = SparseGPT(sparsity=0.0, dtype="float32")
    np.testing.assert_array_equal(dense(run(w, record, cfg=whole)[0]), w)
    leaf, _ = run(w, record, cfg=dataclasses.replace(whole, extra=IN * OUT))
    assert leaf.values.size == 0 and not np.asarray(dense(leaf)).any()


def test_dead_inputs_go_first():
    w, record = problem()
    xtx = record.xtx.at[3].set(0.0).at[:, 3].set(0.0)
    leaf, info = run(w, Record(count=record.count, xtx=xtx), cfg=SparseGPT(sparsity=0.1))
    assert not np.asarray(kept(leaf))[3].any() and int(info.dead) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"block": 0}, "block must be >= 1 or -1"),
        ({"score": "luck"}, "score must be 'obs', 'wanda' or 'magnitude', got 'luck'"),
        ({"extra": 5, "block": 16}, "extra=5 wants the mask of the whole matrix at once"),
        ({"dtype": "int8"}, "dtype must be a floating type, got 'int8'"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SparseGPT(**fields)


def test_weights_and_statistics_that_do_not_fit_are_refused():
    w, record = problem()
    with pytest.raises(ValueError, match=r"extra=-300 at sparsity 0.5 drops \(-60,\) of \[480\] weights"):
        sparsegpt(w, record, SparseGPT(extra=-300))
    with pytest.raises(ValueError, match="Hessian is for 40 inputs, the weight has 12"):
        sparsegpt(w.T, record, SparseGPT())
    with pytest.raises(ValueError, match=r"nnz must be in 0..480, got 481"):
        pack_masked(w, jnp.ones(w.shape, bool), 481)
    with pytest.raises(TypeError, match="dense weights, got a Masked leaf"):
        sparsegpt(pack_masked(w, jnp.ones(w.shape, bool), 480), record, SparseGPT())  # pyright: ignore[reportArgumentType]
    assert isinstance(pack_masked(w, jnp.ones(w.shape, bool), 480), Masked)
