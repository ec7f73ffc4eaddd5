"""Packed codes come back, take no bit too many, and shift out as contiguous rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax.numerics import bitpack


@settings(max_examples=20, deadline=None)
@given(
    bits=st.integers(1, 8),
    rows=st.sampled_from([1, 31, 32, 64, 100, 257]),
    cols=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
def test_round_trip_and_single_rows(bits, rows, cols, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (2, rows, cols)).astype(np.uint8)
    tile = bitpack.pack_tile(rows)
    words = bitpack.pack(jnp.asarray(codes), bits, tile)
    assert words.shape == (2, bitpack.packed_rows(rows, bits, tile), cols)
    np.testing.assert_array_equal(bitpack.unpack(words, bits, tile, rows), codes)
    ids = rng.integers(0, rows, (3, 2))
    np.testing.assert_array_equal(bitpack.unpack_rows(words[0], bits, tile, jnp.asarray(ids)), codes[0][ids])


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_bit_is_wasted(bits):
    words = bitpack.pack(jnp.zeros((32, 3), jnp.uint8), bits, 32)
    assert words.nbytes * 8 == 32 * 3 * bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_against_a_slow_layout_oracle(bits):
    """Bit by bit, from the layout as the module's docstring states it."""
    tile = 64
    codes = np.random.default_rng(bits).integers(0, 2**bits, (tile * 2, 1)).astype(np.uint64)
    words = np.asarray(bitpack.pack(jnp.asarray(codes.astype(np.uint8)), bits, tile))[:, 0].astype(np.uint64)
    per_tile = tile * bits // 32
    for row in range(codes.shape[0]):
        t, r, value, start = row // tile, row % tile, 0, 0
        for width, offset in bitpack.planes(bits):
            height = tile * width // 32
            word = int(words[t * per_tile + start + r % height])
            value |= ((word >> (width * (r // height))) & (2**width - 1)) << offset
            start += height
        assert value == int(codes[row, 0])


def test_codes_out_of_range_saturate():
    packed = bitpack.pack(jnp.asarray([[-3], [9], [2]], jnp.int32), 2, 32)
    assert bitpack.unpack(packed, 2, 32, 3)[:, 0].tolist() == [0, 3, 2]


def test_refusals():
    with pytest.raises(ValueError, match=r"bits must be in 1\.\.8, got 9"):
        bitpack.planes(9)
    with pytest.raises(ValueError, match="tile must be a positive multiple of 32, got 48"):
        bitpack.pack(jnp.zeros((48, 1), jnp.uint8), 4, 48)
