"""GQSA and N:M on one matrix: limits, exact counts, weights that share their input, refusals."""

import functools

import jax
import numpy as np
import pytest

from compressjax.leaf import unpack_codes, unpack_zeros
from compressjax.leaf.group_sparse import kept_groups, stored_groups, unpack_words
from compressjax.ops import dense
from compressjax.quantization import GPTQ, gptq
from compressjax.sparsity import BQPO, GQSA, NM, gqsa_shared, n_m_shared, sparsify
from compressjax.sparsity.n_m import n_m

from .problems import loss, problem


@functools.partial(jax.jit, static_argnames="cfg")
def run(ws, record, *, cfg):
    return (gqsa_shared if isinstance(cfg, GQSA) else n_m_shared)(ws, record, cfg)


def kept(leaf):
    return np.asarray(jax.jit(kept_groups)(leaf))


@pytest.mark.parametrize("scope", [pytest.param("row", marks=pytest.mark.slow), "matrix"])
def test_without_sparsity_it_is_gptq_bit_for_bit(scope):
    w, record, _ = problem()
    leaf, info = run((w,), record, cfg=GQSA(group=8, sparsity=0.0, scope=scope))[0]
    plain, plain_info = jax.jit(gptq, static_argnums=2)(
        w, record, GPTQ(bits=4, group=8, order="none", static_groups=False)
    )
    np.testing.assert_array_equal(dense(leaf), dense(plain))
    found = jax.jit(stored_groups)(leaf)
    codes = np.asarray(unpack_codes(plain)).reshape(4, 8, 8)[found.index, :, found.output].T
    np.testing.assert_array_equal(unpack_words(found.words, 4, 8), codes)
    np.testing.assert_array_equal(found.zero, unpack_zeros(plain)[found.index, found.output])
    np.testing.assert_allclose(info.error, plain_info.error, rtol=1e-5)


def test_counts_are_exact_in_both_scopes():
    w, record, _ = problem()
    one = run((w,), record, cfg=GQSA(group=8, scope="row", sparsity=0.75))[0][0]
    np.testing.assert_array_equal(kept(one).sum(0), np.ones(8))
    whole = run((w,), record, cfg=GQSA(group=8, sparsity=0.3, least=1))[0][0]
    assert kept(whole).sum() == 32 - round(0.3 * 32)
    assert np.all(kept(whole).sum(0) >= 1)
    zeros = np.asarray(dense(whole)).reshape(4, 8, 8)
    assert not np.any(np.where(kept(whole)[:, None], 0, zeros))


@pytest.mark.parametrize(
    "cfg", [GQSA(group=8), pytest.param(NM(group=16), marks=pytest.mark.slow)], ids=["gqsa", "n:m"]
)
def test_weights_that_share_an_input_are_as_if_alone(cfg):
    w, record, _ = problem()
    parts = (w[:, :4], w[:, 4:])
    for part, (leaf, info) in zip(parts, run(parts, record, cfg=cfg), strict=True):
        alone, alone_info = run((part,), record, cfg=cfg)[0]
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(info.error, alone_info.error, rtol=1e-5)
        np.testing.assert_allclose(info.error, loss(part, dense(leaf), record.xtx).sum(), rtol=1e-3)
        assert info.error < info.rounding_error


def test_two_of_four_are_kept():
    w, record, _ = problem()
    leaf, _ = jax.jit(n_m, static_argnums=2)(w, record, NM(group=16))
    kept = np.asarray(dense(leaf)).reshape(8, 4, 8) != 0
    assert kept.sum(1).max() <= 2 and kept.mean() > 0.4


def test_dead_inputs_are_dropped():
    w, record, x = problem()
    x = x.at[:, :8].set(0)
    record = type(record)(count=record.count, xtx=x.T @ x)
    leaf, info = run((w,), record, cfg=GQSA(group=8))[0]
    assert not np.any(kept(leaf)[0]) and int(info.dead) == 8


def test_refuses_what_cannot_be():
    w, record, _ = problem()
    with pytest.raises(ValueError, match="group=16 must divide the 24 inputs"):
        gqsa_shared((w[:24],), record, GQSA())
    with pytest.raises(ValueError, match="Hessian is for 32 inputs, weights have"):
        gqsa_shared((w[:16],), record, GQSA())
    with pytest.raises(ValueError, match="Hessian is for 32 inputs, weights have"):
        n_m_shared((w[:16],), record, NM())
    with pytest.raises(ValueError, match="sparsity=0.99 leaves none of 2 groups"):
        gqsa_shared((w,), record, GQSA(scope="row", sparsity=0.99))
    leaf, _ = run((w,), record, cfg=GQSA(group=8))[0]
    with pytest.raises(TypeError, match="GQSA quantises dense weights, got a GroupSparse leaf"):
        gqsa_shared((leaf,), record, GQSA())
    with pytest.raises(ValueError, match="GQSA needs Hessian statistics of a/kernel"):
        sparsify({"a": {"kernel": w}}, GQSA())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"sparsity": 1.0}, "GQSA.sparsity must be in \\[0, 1\\)"),
        ({"sparsity": -0.1}, "GQSA.sparsity"),
        ({"bits": 9}, "GQSA.bits must be in 2..8"),
        ({"group": 12}, "GQSA.group \\* bits must be a multiple of 32"),
        ({"scope": "layer"}, "GQSA.scope must be 'row' or 'matrix'"),
        ({"score": "taylor"}, "GQSA.score must be one of"),
        ({"init": "svd"}, "GQSA.init must be one of"),
        ({"refine": -1}, "GQSA.refine must be >= 0"),
        ({"order": "act"}, "GQSA.order must be one of"),
        ({"grid": "hessian", "init": "ls"}, "GQSA.grid='hessian'"),
        ({"damp": 0.0}, "GQSA.damp must be > 0"),
        ({"least": -1}, "GQSA.least must be >= 0"),
    ],
)
def test_config_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        GQSA(**options)


@pytest.mark.parametrize(
    "options, match",
    [({"n": 4}, "n must be in 1..3"), ({"m": 3}, "m must be 2, 4, 8 or 16"), ({"group": 30}, "NM.group must be")],
)
def test_n_m_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        NM(**options)


@pytest.mark.parametrize(
    "options", [{"epochs": -1}, {"batch": 0}, {"lr_weights": -1.0}, {"lr_zeros": float("nan")}, {"targets": "fp"}]
)
def test_recovery_refuses(options):
    with pytest.raises(ValueError, match=f"BQPO.{next(iter(options))} must be"):
        BQPO(**options)
    with pytest.raises(TypeError, match="NM.bqpo must be a BQPO, got NoneType"):
        NM(bqpo=None)
