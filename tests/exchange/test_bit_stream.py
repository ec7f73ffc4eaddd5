import numpy as np
import pytest

from compressjax.exchange.bit_stream import pack_stream, unpack_stream


def slow_stream(codes, bits):
    """Bit by bit: bit ``j`` of code ``i`` is bit ``i * bits + j`` of the stream."""
    words = [0] * (-(-len(codes) * bits // 32))
    for i, code in enumerate(codes):
        for j in range(bits):
            place = i * bits + j
            words[place // 32] |= ((int(code) >> j) & 1) << (place % 32)
    return np.array(words, np.uint32).view(np.int32)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 77, 160])
def test_bit_by_bit(bits, count):
    codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
    words = pack_stream(codes, bits)
    np.testing.assert_array_equal(words, slow_stream(codes, bits))
    np.testing.assert_array_equal(unpack_stream(words, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_at_every_place(bits):
    codes = (np.arange(32)[None, :] + np.arange(2**bits)[:, None]) % 2**bits
    np.testing.assert_array_equal(unpack_stream(pack_stream(codes, bits), bits, 32), codes)


def test_three_bits_word_by_word():
    """The words as GPTQ kernels take them apart: 10 codes, then codes 10 and 21 in two pieces."""
    codes = np.random.default_rng(0).integers(0, 8, 32).astype(np.uint32)
    first = sum(codes[k] << (3 * k) for k in range(10)) | ((codes[10] & 3) << 30)
    second = (codes[10] >> 2) | sum(codes[11 + k] << (3 * k + 1) for k in range(10)) | ((codes[21] & 1) << 31)
    third = (codes[21] >> 1) | sum(codes[22 + k] << (3 * k + 2) for k in range(10))
    wanted = np.array([int(w) & 0xFFFFFFFF for w in (first, second, third)], np.uint32)
    np.testing.assert_array_equal(pack_stream(codes, 3).view(np.uint32), wanted)


def test_leading_axes():
    codes = np.random.default_rng(0).integers(0, 8, (2, 3, 40))
    words = pack_stream(codes, 3)
    assert words.shape == (2, 3, 4) and words.dtype == np.int32
    np.testing.assert_array_equal(words[1, 2], slow_stream(codes[1, 2], 3))
    np.testing.assert_array_equal(unpack_stream(words, 3, 40), codes)


def test_saturates():
    np.testing.assert_array_equal(unpack_stream(pack_stream(np.array([-3, 0, 7, 8, 99]), 3), 3, 5), [0, 0, 7, 7, 7])


def test_refusals():
    with pytest.raises(ValueError, match=r"bits must be in 1\.\.8, got 9"):
        pack_stream(np.zeros(4, np.uint8), 9)
    with pytest.raises(ValueError, match="40 codes of 3 bits take 4 words, got 5"):
        unpack_stream(np.zeros(5, np.int32), 3, 40)
