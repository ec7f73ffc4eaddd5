"""Records merge like the sets of tokens they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax.calibration import Activations, Hessian, Moments, Record, Stats, measure, merge
from compressjax.calibration.statistics import gram


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 29), seed=st.integers(0, 99))
def test_merging_parts_equals_the_whole(cut, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(30, 4)), jnp.float32)
    for cfg in (Hessian(), Moments()):
        parts = merge(measure(cfg, x[:cut]), measure(cfg, x[cut:]))
        for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(measure(cfg, x)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [8, 256, 258, 300])
def test_symmetric_product_in_blocks(width):
    x = jax.random.normal(jax.random.key(0), (40, width))
    np.testing.assert_allclose(gram(x), x.T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(gram(x), gram(x).T)


def test_accumulates_in_float32_whatever_the_input():
    x = jnp.full((4096, 2), 0.1, jnp.bfloat16)
    xtx = measure(Hessian(), x).xtx
    assert xtx.dtype == jnp.float32
    np.testing.assert_allclose(xtx, 4096 * float(jnp.bfloat16(0.1)) ** 2, rtol=4096 * 2.0**-24)


def test_mask_shapes():
    x = jnp.arange(12, dtype=jnp.float32).reshape(2, 3, 2)
    mask = jnp.asarray([[True, False, False], [False, True, True]])
    record = measure(Moments(), x, mask)
    np.testing.assert_array_equal(record.x_sum, x[mask].sum(0))
    assert float(record.count) == 3


def test_records_of_different_statistics_do_not_merge():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="only one of the records has"):
        merge(measure(Hessian(), x), measure(Moments(), x))


def test_stats_of_different_weights_do_not_merge():
    record = Record(count=jnp.float32(1))
    with pytest.raises(ValueError, match=r"different weights: \['b'\]"):
        Stats({"a": record}, {"a": "a"}).merge(Stats({"a": record}, {"a": "a", "b": "a"}))


def test_config_refusals():
    with pytest.raises(ValueError, match="Activations.per_batch must be >= 1, got 0"):
        Activations(per_batch=0)
