"""CompactifAI: cuts, bonds, rounding, layers with bonds of their own, cores in few bits, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.driver import leaf_rule
from compressjax.factorization import (
    SVD,
    CompactifAI,
    balanced_factors,
    bonds_within,
    compactifai,
    lowrank,
    quantize_cores,
    search_dims,
    tensorize,
    truncate,
)
from compressjax.factorization.site_dims import dims_for, padded_size
from compressjax.leaf import Affine, ByLayer, TensorTrain, Transposed, bonds_of
from compressjax.ops import dense, nbits
from compressjax.quantization import GPTQ, RTN, quantize

PLAIN = CompactifAI(dtype="float32")


def matrix(rows=24, cols=20, seed=0, lead=()):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, rows, cols)), jnp.float32)


def squared(a, b):
    return float(np.sum((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2))


def test_factors_are_as_equal_as_can_be():
    assert balanced_factors(576, 2) == (24, 24) and balanced_factors(576, 3) == (8, 8, 9)
    assert balanced_factors(1536, 2) == (32, 48) and balanced_factors(192, 2) == (12, 16)
    for size in (30, 96, 7):
        every = [(a, size // a) for a in range(1, size + 1) if size % a == 0]
        assert balanced_factors(size, 2) == min(every, key=sum)
    assert padded_size(97, 2) == 98 and padded_size(96, 3) == 96


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_a_ratio_is_kept_and_all_of_it_is_used(ratio):
    w = matrix()
    bond = bonds_of(compactifai(w, CompactifAI(param_ratio=ratio)))[0]
    numbers = nbits(compactifai(w, CompactifAI(param_ratio=ratio))) // 16
    assert numbers == bond * (4 * 4 + 6 * 5) <= ratio * w.size < (bond + 1) * (4 * 4 + 6 * 5)


def test_two_sites_lose_what_the_rearranged_spectrum_leaves_and_the_report_says_so():
    w = matrix()
    leaf, info = leaf_rule(w, CompactifAI(dtype="float32", max_bond=7), None, None)
    rearranged = np.asarray(w).reshape(4, 6, 4, 5).transpose(0, 2, 1, 3).reshape(16, 30)
    tail = np.sum(np.linalg.svd(rearranged, compute_uv=False)[7:] ** 2)
    assert squared(w, dense(leaf)) == pytest.approx(tail, rel=1e-4)
    assert float(info.error) == pytest.approx(tail, rel=1e-4)
    rank = 7 * (4 * 4 + 6 * 5) // (24 + 20)
    plain = np.sum(np.linalg.svd(np.asarray(w), compute_uv=False)[rank:] ** 2)
    assert float(info.rounding_error) == pytest.approx(plain, rel=1e-4)


def test_skewed_factors_are_the_svd():
    w = matrix()
    skewed = dataclasses.replace(PLAIN, in_dims=(24, 1), out_dims=(1, 20), max_bond=5)
    svd = lowrank({"kernel": w}, SVD(rank=5, dtype="float32"))["kernel"]
    np.testing.assert_allclose(dense(compactifai(w, skewed)), dense(svd), atol=1e-4)


def test_padding_takes_sizes_that_have_no_factors():
    w = matrix(23, 19)
    with pytest.raises(ValueError, match="CompactifAI.sites=2 needs as many factors of 23 above 1"):
        compactifai(w, PLAIN)
    leaf = compactifai(w, dataclasses.replace(PLAIN, pad=True, max_bond=100))
    assert leaf.in_dims == (4, 6) and leaf.out_dims == (4, 5) and leaf.shape == (23, 19)
    np.testing.assert_allclose(dense(leaf), w, atol=1e-5)
    assert nbits(leaf) == 32 * (16 * 16 + 16 * 30)


def test_truncating_a_leaf_is_compressing_the_weight_harder():
    w = matrix(lead=(2,))
    wide = lowrank({"kernel": w}, dataclasses.replace(PLAIN, max_bond=12))["kernel"]
    narrow = truncate(wide, 5, dtype="float32")
    again = lowrank({"kernel": w}, dataclasses.replace(PLAIN, max_bond=5))["kernel"]
    assert bonds_of(narrow) == (5,)
    np.testing.assert_allclose(dense(narrow), dense(again), atol=1e-4)
    assert bonds_of(truncate(narrow, 9)) == (5,)
    with pytest.raises(ValueError, match=r"max_bond must be one bond >= 1 or 1, got \(2, 3\)"):
        truncate(wide, (2, 3))


def test_bonds_for_a_tolerance_keep_it_and_no_smaller_ones_do():
    w = matrix()
    (bond,) = bonds_within(w, 0.5, *dims_for(PLAIN, *w.shape))
    errors = [squared(w, dense(compactifai(w, dataclasses.replace(PLAIN, max_bond=b)))) for b in (bond, bond - 1)]
    assert errors[0] <= 0.25 * squared(w, 0) < errors[1]
    three = dataclasses.replace(PLAIN, sites=3)
    w = matrix(24, 12)
    found = bonds_within(w, 0.3, *dims_for(three, *w.shape))
    assert squared(w, dense(compactifai(w, dataclasses.replace(three, max_bond=found)))) <= 0.09 * squared(w, 0)


def test_the_search_finds_the_structure_that_is_there():
    rng = np.random.default_rng(1)
    kron = jnp.asarray(np.kron(rng.normal(size=(4, 4)), rng.normal(size=(6, 5))), jnp.float32)
    thin = matrix(24, 3) @ matrix(3, 20)
    assert search_dims(kron, 0.3)[0][:2] == ((4, 6), (4, 5))
    best = search_dims(thin, 0.3)
    assert best[0][:2] == ((24, 1), (1, 20)) and best[0].error < 1e-9 < best[1].error
    assert [fit.error for fit in best] == sorted(fit.error for fit in best)
    with pytest.raises(ValueError, match="candidates must be as many factors of 24 inputs"):
        search_dims(kron, 0.3, [((4, 5), (4, 5))])


def test_rules_give_every_layer_its_bond():
    params = {"attn": {"kernel": matrix()}, "mlp": {"kernel": matrix(seed=1)}, "head": {"kernel": matrix(seed=2)}}
    small = lowrank(params, {"attn": CompactifAI(max_bond=3), "mlp": CompactifAI(max_bond=9), "**": None})
    assert bonds_of(small["attn"]["kernel"]) == (3,) and bonds_of(small["mlp"]["kernel"]) == (9,)
    assert small["head"]["kernel"] is params["head"]["kernel"]


def test_layers_of_a_stack_can_have_bonds_of_their_own():
    w = matrix(lead=(4,))
    params = {"blocks": {"up": {"kernel": w}, "down": {"kernel": w}}}
    mixed = tensorize(params, {"blocks/up": (6, None, 3, 6), "blocks/down": 5}, PLAIN)["blocks"]
    leaf = mixed["up"]["kernel"]
    assert isinstance(leaf, ByLayer) and isinstance(mixed["down"]["kernel"], TensorTrain)
    assert sorted(v.ndim if isinstance(v, jax.Array) else bonds_of(v)[0] for v in leaf.variants) == [3, 3, 6]
    built = dense(leaf)
    np.testing.assert_array_equal(built[1], w[1])
    for layer, bond in ((0, 6), (2, 3), (3, 6)):
        alone = compactifai(w[layer], dataclasses.replace(PLAIN, max_bond=bond))
        np.testing.assert_allclose(built[layer], dense(alone), atol=1e-5)
    with pytest.raises(ValueError, match="must be one, or one per layer, got 2"):
        tensorize(params, {"blocks/up": (3, 3)}, PLAIN)


def test_cores_take_few_bits_at_once_or_after_healing():
    w, rounding = matrix(64, 48), RTN(bits=8, group=32)
    at_once = compactifai(w, CompactifAI(max_bond=20, cores=rounding))
    first, last = at_once.cores
    assert isinstance(first, Transposed) and isinstance(first.inner, Affine) and isinstance(last, Affine)
    assert nbits(at_once) < 0.65 * 16 * 20 * (8 * 6 + 8 * 8)
    wide = tensorize({"a": {"kernel": jnp.stack([w, w, w])}}, {"a": (20, 8, 20)}, PLAIN)
    later = quantize_cores(wide, {"a": rounding})["a"]["kernel"]
    assert all(isinstance(train.cores[1], Affine) for train in later.variants)
    small, plain = dense(later), dense(wide["a"]["kernel"])
    np.testing.assert_allclose(small[2], dense(at_once), atol=1e-5)
    assert 0 < squared(small[2], plain[2]) < 1e-3 * squared(w, plain[2])


def test_the_rest_is_quantised_by_rules():
    x = matrix(100, 24, seed=5)
    params = {"mlp": {"kernel": matrix()}, "attn": {"kernel": matrix(seed=1)}}
    stats = {"attn/kernel": Record(count=jnp.float32(100), xtx=x.T @ x)}
    small = quantize(params, {"mlp": CompactifAI(max_bond=8), "attn": GPTQ(bits=4, group=-1)}, stats=stats)
    assert isinstance(small["mlp"]["kernel"], TensorTrain) and isinstance(small["attn"]["kernel"], Affine)


def test_bad_input_is_refused_by_name():
    w = matrix()
    with pytest.raises(ValueError, match="CompactifAI.sites must be an integer >= 1, got 0"):
        CompactifAI(sites=0)
    with pytest.raises(ValueError, match="CompactifAI.max_bond must hold integers >= 1, got 0"):
        CompactifAI(max_bond=0)
    with pytest.raises(ValueError, match="CompactifAI.param_ratio must be > 0, got 0"):
        CompactifAI(param_ratio=0)
    with pytest.raises(ValueError, match="must be as many factors"):
        CompactifAI(in_dims=(4, 6), out_dims=(20,))
    with pytest.raises(ValueError, match="must be as many factors"):
        CompactifAI(in_dims=(4, 6))
    with pytest.raises(TypeError, match="CompactifAI.cores must be a method that needs no statistics"):
        CompactifAI(cores=GPTQ(bits=4))
    with pytest.raises(
        ValueError, match=r"in_dims and out_dims must be as many factors of 24 inputs and of 20 outputs"
    ):
        compactifai(w, CompactifAI(in_dims=(4, 5), out_dims=(4, 5)))
    with pytest.raises(ValueError, match="CompactifAI.max_bond must be one bond or 1 for 2 sites"):
        compactifai(w, CompactifAI(max_bond=(3, 4)))
    with pytest.raises(ValueError, match="CompactifAI.param_ratio must be at least 0.09583"):
        compactifai(w, CompactifAI(param_ratio=0.01))
    with pytest.raises(ValueError, match="CompactifAI.param_ratio must be at least 1 "):
        compactifai(w, CompactifAI(sites=1))
    with pytest.raises(ValueError, match=r"rel_tol must be in \(0, 1\), got 1"):
        bonds_within(w, 1, (4, 6), (4, 5))
    leaf = compactifai(w, CompactifAI(max_bond=2))
    with pytest.raises(TypeError, match="CompactifAI quantises dense weights, got a TensorTrain leaf"):
        compactifai(leaf, CompactifAI())
    with pytest.raises(ValueError, match="name no matrix product operator"):
        quantize_cores({"a": {"kernel": w}}, RTN(bits=8, group=16))
    with pytest.raises(TypeError, match="must be a method that needs no statistics"):
        quantize_cores({"a": {"kernel": leaf}}, GPTQ(bits=4))
