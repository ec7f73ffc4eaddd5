"""N:M leaves against a plain loop, and their exact size."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import pack_affine
from compressjax.leaf.n_m import pack_n_m, spread, unpack_positions
from compressjax.ops import dense, nbits


def positions_of(rows, cols, n, m, seed=0):
    order = np.argsort(np.random.default_rng(seed).random((rows // m, m, cols)), axis=1)
    return np.sort(order[:, :n], axis=1)


@pytest.mark.parametrize("n, m", [(2, 4), (1, 2), (3, 8), (1, 16)])
def test_dense_is_the_loops(n, m):
    positions = positions_of(48, 5, n, m)
    values = np.random.default_rng(1).normal(size=(48 // m * n, 5)).astype(np.float32)
    w = pack_n_m(jnp.asarray(values), jnp.asarray(positions.reshape(values.shape), jnp.int32), n=n, m=m)
    expected = np.zeros((48, 5), np.float32)
    for block, i, o in np.ndindex(positions.shape):
        expected[block * m + positions[block, i, o], o] = values[block * n + i, o]
    np.testing.assert_array_equal(dense(w), expected)
    np.testing.assert_array_equal(unpack_positions(w), positions)
    np.testing.assert_array_equal(spread(jnp.ones(values.shape), w) > 0, expected != 0)


def test_bits_per_weight_are_those_of_the_formula():
    """Half of (4 bits and a 2-bit position) and a 16-bit scale and a 4-bit zero for 128 inputs."""
    positions = jnp.asarray(positions_of(512, 64, 2, 4).reshape(256, 64), jnp.int32)
    values = pack_affine(
        jnp.zeros((256, 64), jnp.int32),
        jnp.ones((4, 64), jnp.float16),
        jnp.zeros((4, 64), jnp.int32),
        bits=4,
        group=64,
        zero_kind="int",
    )
    assert nbits(pack_n_m(values, positions, n=2, m=4)) / (512 * 64) == 0.5 * (4 + 2) + (16 + 4) / 128


@pytest.mark.parametrize(
    "shape, n, m, match",
    [
        ((6, 2), 2, 3, "m must be 2, 4, 8 or 16"),
        ((8, 2), 4, 4, "n must be in 1..3 for m=4"),
        ((7, 2), 2, 4, "a multiple of n=2 rows, got 7"),
    ],
)
def test_refuses_patterns_that_do_not_fit(shape, n, m, match):
    with pytest.raises(ValueError, match=match):
        pack_n_m(jnp.zeros(shape), jnp.zeros(shape, jnp.int32), n=n, m=m)


def test_refuses_positions_of_another_shape():
    with pytest.raises(ValueError, match="positions must have the values' shape"):
        pack_n_m(jnp.zeros((8, 2)), jnp.zeros((8, 3), jnp.int32), n=2, m=4)
