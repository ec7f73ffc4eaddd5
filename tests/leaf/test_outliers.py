"""Outliers against a dense array: places, empty slots, room, and cutting it off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import Outliers, outlier_mask, pack_outliers, trim_outliers
from compressjax.ops import dense, matmul, nbits

IN, OUT = 20, 6


def problem(seed=0, chance=0.2):
    rng = np.random.default_rng(seed)
    where = rng.random((IN, OUT)) < chance
    where[:, 2] = False  # an output without any
    where[:, 4] = True  # and one of nothing else
    return where, rng.normal(size=(IN, OUT)).astype(np.float16)


def test_decodes_to_what_was_stored():
    where, values = problem()
    w = pack_outliers(jnp.asarray(where), jnp.asarray(values), int(where.sum()) + 5)
    np.testing.assert_array_equal(dense(w), np.where(where, values, 0).astype(np.float32))
    np.testing.assert_array_equal(outlier_mask(w), where)
    np.testing.assert_array_equal(w.starts, np.concatenate([[0], np.cumsum(where.sum(0))]))
    for o in range(OUT):
        inputs = np.asarray(w.inputs)[w.starts[o] : w.starts[o + 1]]
        np.testing.assert_array_equal(inputs, np.flatnonzero(where[:, o]))


def test_a_stored_zero_keeps_its_place():
    where = jnp.zeros((IN, OUT), bool).at[0, 0].set(True)
    w = pack_outliers(where, jnp.zeros((IN, OUT), jnp.float16), 3)
    np.testing.assert_array_equal(outlier_mask(w), where)


@pytest.mark.parametrize("rows", [1, 40])
def test_products_of_few_and_of_many_rows(rows):
    where, values = problem()
    w = pack_outliers(jnp.asarray(where), jnp.asarray(values), 100)
    x = jax.random.normal(jax.random.key(0), (rows, IN))
    np.testing.assert_allclose(matmul(x, w), x @ dense(w), atol=1e-5)


def test_without_any():
    w = pack_outliers(jnp.zeros((IN, OUT), bool), jnp.ones((IN, OUT), jnp.float16), 0)
    np.testing.assert_array_equal(dense(w), 0)
    np.testing.assert_array_equal(matmul(jnp.ones((1, IN)), w), 0)
    np.testing.assert_array_equal(matmul(jnp.ones((17, IN)), w), 0)
    assert nbits(w) == 32 * (OUT + 1)


def test_every_slot_is_counted_and_trimming_keeps_the_weight():
    problems = [problem(seed, 0.1 * (seed + 1)) for seed in range(3)]
    most = max(int(where.sum()) for where, _ in problems)
    packed = [pack_outliers(jnp.asarray(m), jnp.asarray(v), most + 30) for m, v in problems]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *packed)
    assert nbits(stacked) == 3 * (32 * (OUT + 1) + (16 + 16) * (most + 30))
    small = trim_outliers({"a": [stacked], "b": jnp.ones(3)})["a"][0]
    assert isinstance(small, Outliers) and small.values.shape == (3, most)
    np.testing.assert_array_equal(dense(small), dense(stacked))


def test_indices_are_as_narrow_as_the_inputs_allow():
    def leaf(rows):
        where = jnp.zeros((rows, 1), bool).at[rows - 1, 0].set(True)
        return pack_outliers(where, jnp.ones((rows, 1), jnp.float16), 1)

    assert leaf(2**16).inputs.dtype == jnp.uint16 and leaf(2**16 + 1).inputs.dtype == jnp.int32
    assert float(dense(leaf(2**16))[-1, 0]) == 1.0


def test_refusals():
    where, values = problem()
    where, values = jnp.asarray(where), jnp.asarray(values)
    with pytest.raises(ValueError, match="capacity=3 is too small for"):
        pack_outliers(where, values, 3)
    with pytest.raises(ValueError, match="capacity must be >= 0, got -1"):
        pack_outliers(where, values, -1)
    with pytest.raises(ValueError, match="of one shape"):
        pack_outliers(where, values[1:], 50)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(trim_outliers)(pack_outliers(where, values, 100))
