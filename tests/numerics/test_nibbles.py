"""Two nibbles to a byte, and the widening without sign extension."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.nibbles import pack_nibbles, unpack_nibbles, widen_nibbles


def test_every_byte_widens_to_sixteen_times_its_two_codes():
    low, high = np.meshgrid(np.arange(-8, 8), np.arange(-8, 8))
    packed = pack_nibbles(jnp.asarray(np.stack([low.ravel(), high.ravel()])), 2)
    assert packed.shape == (1, 256) and len(set(np.asarray(packed)[0].tolist())) == 256
    np.testing.assert_array_equal(packed[0], (low.ravel() & 15) | ((high.ravel() & 15) << 4))
    np.testing.assert_array_equal(widen_nibbles(packed), 16 * np.stack([low.ravel(), high.ravel()]))


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_round_trip(lead):
    codes = np.random.default_rng(0).integers(-8, 8, (*lead, 96, 5))
    packed = pack_nibbles(jnp.asarray(codes), 32)
    assert packed.dtype == jnp.uint8 and packed.shape == (*lead, 48, 5)
    np.testing.assert_array_equal(unpack_nibbles(packed, 32), codes)


def test_a_byte_holds_channels_half_a_block_apart():
    codes = np.random.default_rng(1).integers(-8, 8, (64, 1))
    packed = np.asarray(pack_nibbles(jnp.asarray(codes), 32))[:, 0]
    for byte in range(32):
        first = byte // 16 * 32 + byte % 16
        assert packed[byte] == (codes[first, 0] & 15) | ((codes[first + 16, 0] & 15) << 4)


def test_codes_out_of_range_saturate():
    packed = pack_nibbles(jnp.asarray([[100], [-100]]), 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, 2)[:, 0], [7, -8])


@pytest.mark.parametrize("block", [3, 0, 28])
def test_a_block_that_does_not_fit_is_refused(block):
    with pytest.raises(ValueError, match=f"must be even and divide the 64 channels, got {block}"):
        pack_nibbles(jnp.zeros((64, 2), jnp.int32), block)
