"""Two-level statistics against the formula written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import pack_two_level
from compressjax.leaf.two_level import decode_statistic, positive
from compressjax.ops import dense, matmul, nbits

IN, OUT, GROUP, RUN = 40, 24, 16, 16


def parts(seed=0):
    rng = np.random.default_rng(seed)
    groups, runs = 3, 2
    return {
        "codes": rng.integers(0, 8, (IN, OUT)),
        "scale_codes": rng.integers(0, 8, (groups, OUT)),
        "zero_codes": rng.integers(0, 8, (groups, OUT)),
        "scale_grid": (
            rng.uniform(0.01, 0.1, (groups, runs)).astype(np.float16),
            rng.uniform(-2, -1, (groups, runs)).astype(np.float16),
        ),
        "zero_grid": (
            rng.uniform(0.1, 1, (groups, runs)).astype(np.float16),
            rng.uniform(-2, 2, (groups, runs)).astype(np.float16),
        ),
    }


def pack(found, **options):
    found = jax.tree.map(jnp.asarray, found)
    widths = {"bits": 3, "scale_bits": 3, "zero_bits": 3, "group": GROUP, "stat_group": RUN}
    return pack_two_level(**found, **{**widths, **options})


def test_dense_is_the_formula():
    found = parts()
    perm = np.random.default_rng(1).permutation(IN)
    out = np.arange(OUT) // RUN

    def statistic(codes, grid):
        scale, zero = (np.asarray(a, np.float32)[:, out] for a in grid)
        return (scale * (codes.astype(np.float32) - zero)).astype(np.float16).astype(np.float32)

    scale = statistic(found["scale_codes"], found["scale_grid"])
    zero = statistic(found["zero_codes"], found["zero_grid"])
    at = np.arange(IN) // GROUP
    expected = np.empty((IN, OUT), np.float32)
    expected[perm] = scale[at] * (found["codes"].astype(np.float32) - zero[at])
    leaf = pack(found, perm=jnp.asarray(perm))
    np.testing.assert_array_equal(dense(leaf), expected)
    x = jax.random.normal(jax.random.key(0), (3, IN))
    np.testing.assert_allclose(matmul(x, leaf), x @ expected, atol=1e-5)


def test_bits_are_those_of_the_papers_formula():
    # Sides that pack without padding: b + 2 stat_bits / group + 64 / (group stat_group).
    codes, stats = jnp.zeros((64, 32), jnp.int32), jnp.zeros((4, 32), jnp.int32)
    half = jnp.ones((4, 2), jnp.float16)
    leaf = pack_two_level(
        codes, stats, stats, (half, half), (half, half), bits=3, scale_bits=3, zero_bits=3, group=16, stat_group=16
    )
    assert nbits(leaf) == 64 * 32 * (3 + 6 / 16 + 64 / 256)
    assert nbits(leaf) / (64 * 32) == 3.625


def test_statistics_stay_finite_and_scales_positive():
    big, minus = jnp.full((1,), 60000.0), jnp.full((1,), -3.0)
    assert float(decode_statistic(jnp.full((1,), 7.0), big, minus, 16)[0]) == 65504
    assert float(positive(decode_statistic(jnp.zeros((1,)), big, jnp.zeros((1,)), 16))[0]) > 0


def test_refusals():
    found = parts()
    with pytest.raises(ValueError, match="scale_codes must end in"):
        pack({**found, "scale_codes": found["scale_codes"][:2]})
    with pytest.raises(ValueError, match="grids of statistics must end in"):
        pack({**found, "zero_grid": (found["zero_grid"][0][:, :1],) * 2})
    with pytest.raises(ValueError, match="perm must name 40 inputs"):
        pack(found, perm=jnp.arange(39))
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        pack(found, group=0)
