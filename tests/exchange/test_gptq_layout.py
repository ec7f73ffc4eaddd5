import dataclasses

import numpy as np
import pytest

from compressjax.exchange.bit_stream import pack_stream, unpack_stream
from compressjax.exchange.gptq_layout import half_scales, pack_gptq, unpack_gptq, zeros_from_version, zeros_to_version
from compressjax.exchange.scheme import PlainAffine, Scheme


def plain(bits=4, rows=96, cols=64, group=32, symmetric=False, order=None, seed=0):
    rng = np.random.default_rng(seed)
    size = rows if group == -1 else group
    groups = -(-rows // size)
    zero = np.full((groups, cols), 2 ** (bits - 1)) if symmetric else rng.integers(0, 2**bits, (groups, cols))
    g_idx = np.arange(rows) // size
    return PlainAffine(
        codes=rng.integers(0, 2**bits, (rows, cols)).astype(np.uint8),
        scale=rng.uniform(-1, 1, (groups, cols)).astype(np.float16),
        zero=zero.astype(np.uint8),
        g_idx=(g_idx if order is None else g_idx[order]).astype(np.int32),
        scheme=Scheme(bits=bits, group=group, symmetric=symmetric, act_order=order is not None),
    )


def assert_same(got, wanted):
    for field in ("codes", "scale", "zero", "g_idx"):
        np.testing.assert_array_equal(getattr(got, field), getattr(wanted, field))
        assert getattr(got, field).dtype == getattr(wanted, field).dtype, field
    assert got.scheme == wanted.scheme


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_round_trip(bits, version):
    for case in (
        plain(bits),
        plain(bits, symmetric=True),
        plain(bits, group=-1),
        plain(bits, rows=160, group=64),
        plain(bits, order=np.random.default_rng(1).permutation(96)),
    ):
        assert_same(unpack_gptq(pack_gptq(case, version=version), case.scheme, version=version), case)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_weight_by_the_published_formula(bits):
    case = plain(bits, rows=160, cols=32, group=64, order=np.random.default_rng(2).permutation(160))
    stored = pack_gptq(case, version=2)
    assert {name: (t.shape, t.dtype.name) for name, t in stored.items()} == {
        "qweight": ((160 * bits // 32, 32), "int32"),
        "qzeros": ((3, 32 * bits // 32), "int32"),
        "scales": ((3, 32), "float16"),
        "g_idx": ((160,), "int32"),
    }

    def field(words, i):
        """Code i of a stream, from Python integers of any size."""
        stream = sum(int(np.uint32(w)) << (32 * k) for k, w in enumerate(words.view(np.uint32)))
        return (stream >> (i * bits)) & (2**bits - 1)

    for row, col in [(0, 0), (10, 3), (21, 31), (159, 17)]:
        group = stored["g_idx"][row]
        assert field(np.ascontiguousarray(stored["qweight"][:, col]), row) == case.codes[row, col]
        assert field(stored["qzeros"][group], col) == case.zero[case.g_idx[row], col]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_version_1_stores_zeros_less_one(bits):
    count = 64
    zeros = 1 + np.arange(3 * count).reshape(3, count) % (2**bits - 1)
    words = pack_stream(zeros, bits)
    stored = zeros_to_version(words, bits, 1)
    np.testing.assert_array_equal(unpack_stream(stored, bits, count), zeros - 1)
    np.testing.assert_array_equal(zeros_from_version(stored, bits, 1), words)
    np.testing.assert_array_equal(zeros_to_version(words, bits, 2), words)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_version_1_brings_zeros_of_0_back(bits):
    words = pack_stream(np.random.default_rng(0).integers(0, 2**bits, (5, 96)), bits)
    np.testing.assert_array_equal(zeros_from_version(zeros_to_version(words, bits, 1), bits, 1), words)
    lone = pack_stream(np.zeros((1, 32), np.uint8), bits)
    first = unpack_stream(zeros_to_version(lone, bits, 1), bits, 32)[0, 0]
    assert first == 2**bits - 1


def test_scattered_groups_are_seen_without_being_stated():
    case = plain(order=np.random.default_rng(3).permutation(96))
    stated = dataclasses.replace(case.scheme, act_order=False)
    assert unpack_gptq(pack_gptq(case, version=2), stated, version=2).scheme.act_order


def test_a_missing_group_index_means_contiguous_groups():
    case = plain()
    stored = pack_gptq(case, version=1)
    del stored["g_idx"]
    assert_same(unpack_gptq(stored, case.scheme, version=1), case)


def test_symmetric_in_name_only_keeps_its_zeros():
    case = plain()
    claimed = dataclasses.replace(case.scheme, symmetric=True)
    assert_same(unpack_gptq(pack_gptq(case, version=2), claimed, version=2), case)


def test_refusals():
    case = plain()
    stored = pack_gptq(case, version=1)
    with pytest.raises(ValueError, match="2, 3, 4 or 8 bits, got 5"):
        pack_gptq(plain(5), version=1)
    with pytest.raises(ValueError, match="version of the GPTQ layout must be 1 or 2, got 3"):
        pack_gptq(case, version=3)
    with pytest.raises(ValueError, match=r"scales should have shape \(2, 64\) at group 64, got \(3, 64\)"):
        unpack_gptq(stored, dataclasses.replace(case.scheme, group=64), version=1)
    with pytest.raises(ValueError, match="g_idx should hold 96 numbers from 0 to 2"):
        unpack_gptq({**stored, "g_idx": stored["g_idx"] + 1}, case.scheme, version=1)
    with pytest.raises(ValueError, match="qzeros should hold zeros"):
        unpack_gptq({**stored, "qzeros": stored["qzeros"][:2]}, case.scheme, version=1)


def test_scales_that_float16_cannot_hold():
    np.testing.assert_array_equal(half_scales(np.float32([0, 0.5, -3])), np.float16([0, 0.5, -3]))
    for bad in (1e6, 1e-9):
        with pytest.raises(ValueError, match="do not fit float16"):
            half_scales(np.float32([1, bad]))
