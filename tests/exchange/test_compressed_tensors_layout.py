import dataclasses

import numpy as np
import pytest

from compressjax.exchange.compressed_tensors_layout import check_groups, pack_compressed, unpack_compressed
from compressjax.exchange.scheme import PlainAffine, Scheme


def plain(bits=4, rows=96, cols=64, group=32, symmetric=False, dtype=np.float32):
    rng = np.random.default_rng(0)
    groups = 1 if group == -1 else rows // group
    zero = np.full((groups, cols), 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, (groups, cols))
    return PlainAffine(
        codes=rng.integers(0, 2**bits, (rows, cols)).astype(np.uint8),
        scale=rng.uniform(0.1, 1, (groups, cols)).astype(dtype),
        zero=zero.astype(np.uint8),
        g_idx=(np.arange(rows) * groups // rows).astype(np.int32),
        scheme=Scheme(bits=bits, group=group, symmetric=symmetric, act_order=False),
    )


def assert_same(got, wanted):
    for field in ("codes", "scale", "zero", "g_idx"):
        np.testing.assert_array_equal(getattr(got, field), getattr(wanted, field))
    assert got.scale.dtype == wanted.scale.dtype
    assert got.scheme == wanted.scheme


@pytest.mark.parametrize("bits", range(1, 9))
def test_round_trip(bits):
    for case in (
        plain(bits),
        plain(bits, symmetric=True, dtype=np.float16),
        plain(bits, group=-1),
        plain(bits, rows=50, cols=33, group=25),
    ):
        assert_same(unpack_compressed(pack_compressed(case), case.scheme), case)


def test_tensors_and_their_meaning():
    """The library's rule: signed code = field - 2**(b-1), packed along inputs; zeros alike, packed along outputs."""
    case = plain(4, rows=64, cols=32, group=32)
    stored = pack_compressed(case)
    assert {name: (t.shape, t.dtype.name) for name, t in stored.items()} == {
        "weight_packed": ((32, 8), "int32"),
        "weight_scale": ((32, 2), "float32"),
        "weight_zero_point": ((4, 2), "int32"),
        "weight_shape": ((2,), "int64"),
    }
    assert stored["weight_shape"].tolist() == [32, 64]
    out, column, group = 7, 45, 1
    signed = ((int(stored["weight_packed"].view(np.uint32)[out, column // 8]) >> (4 * (column % 8))) & 15) - 8
    zero = ((int(stored["weight_zero_point"].view(np.uint32)[out // 8, group]) >> (4 * (out % 8))) & 15) - 8
    weight = (signed - zero) * stored["weight_scale"][out, group]
    wanted = case.scale[group, out] * (float(case.codes[column, out]) - float(case.zero[group, out]))
    assert weight == wanted


def test_symmetric_stores_no_zeros():
    assert "weight_zero_point" not in pack_compressed(plain(symmetric=True))


def test_old_releases_left_the_last_bits_of_a_word_unused():
    case = plain(3)

    def loose(codes):
        codes = np.pad(codes, [(0, 0), (0, -codes.shape[1] % 10)]).astype(np.uint32).reshape(len(codes), -1, 10)
        return (codes << (3 * np.arange(10, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)

    stored = pack_compressed(case) | {
        "weight_packed": loose(case.codes.T),
        "weight_zero_point": loose(case.zero).T,
    }
    assert_same(unpack_compressed(stored, case.scheme), case)


def test_a_group_index_of_old_releases_is_read():
    case = plain()
    order = np.random.default_rng(1).permutation(96)
    stated = dataclasses.replace(case.scheme, act_order=True)
    got = unpack_compressed(pack_compressed(case) | {"weight_g_idx": case.g_idx[order]}, stated)
    np.testing.assert_array_equal(got.g_idx, case.g_idx[order])
    assert got.scheme.act_order
    with pytest.raises(ValueError, match="32 inputs in each of 3 groups, but weight_g_idx gives between 31 and 33"):
        lopsided = case.g_idx.copy()
        lopsided[0] = 1
        unpack_compressed(pack_compressed(case) | {"weight_g_idx": lopsided}, stated)
    with pytest.raises(ValueError, match="numbers from 0 to 2, got -1 to -1"):
        unset = np.full(96, -1, np.int32)
        unpack_compressed(pack_compressed(case) | {"weight_g_idx": unset}, stated)


def test_one_scale_for_the_whole_weight():
    case = plain(8, group=-1, symmetric=True)
    stored = pack_compressed(case) | {"weight_scale": np.float32([0.25])}
    np.testing.assert_array_equal(unpack_compressed(stored, case.scheme).scale, np.full((1, 64), 0.25, np.float32))


def test_refusals():
    with pytest.raises(ValueError, match="128 does not divide 576 inputs"):
        check_groups(576, 128)
    check_groups(96, 128)
    case = plain()
    with pytest.raises(ValueError, match="no group index"):
        pack_compressed(dataclasses.replace(case, scheme=dataclasses.replace(case.scheme, act_order=True)))
    stored = pack_compressed(case)
    with pytest.raises(ValueError, match=r"weight_scale should have shape \(64, 2\) at group 48"):
        unpack_compressed(stored, dataclasses.replace(case.scheme, group=48))
    with pytest.raises(ValueError, match="weight_shape"):
        unpack_compressed(stored | {"weight_shape": np.array([63, 96])}, case.scheme)
    with pytest.raises(ValueError, match="take 12 words"):
        unpack_compressed(stored | {"weight_packed": stored["weight_packed"][:, :-1]}, case.scheme)
