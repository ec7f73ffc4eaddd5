"""The joint statistic is the separate ones, but for the first token of each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Activations, Hessian, Moments, calibrate, measure
from compressjax.calibration.joint import HessianAndMoments
from compressjax.ops import matmul


def x(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 8, 6)).at[:, 0].mul(100.0)


def test_without_the_first_tokens_left_out_it_is_the_separate_ones():
    found = measure(HessianAndMoments(samples=4, skip_first=False), x())
    for other, names in ((Hessian(), ("xtx", "count")), (Moments(), ("x_sum", "abs_sum", "abs_max"))):
        for name in names:
            np.testing.assert_array_equal(getattr(found, name), getattr(measure(other, x()), name))
    np.testing.assert_array_equal(found.samples, measure(Activations(per_batch=4), x()).samples)


def test_the_first_token_counts_in_sums_but_sets_no_maximum():
    found = measure(HessianAndMoments(samples=14), x())
    np.testing.assert_array_equal(found.xtx, measure(Hessian(), x()).xtx)
    np.testing.assert_array_equal(found.abs_max, jnp.abs(x()[:, 1:]).max((0, 1)))
    np.testing.assert_array_equal(found.samples, x()[:, 1:].reshape(14, 6))


def test_with_padding_the_first_real_token_is_left_out():
    mask = jnp.asarray([[False, False, True, True, True, True, True, False], [True] * 8])
    found = measure(HessianAndMoments(), x(), mask)
    kept = jnp.concatenate([x()[0, 3:7], x()[1, 1:]])
    np.testing.assert_array_equal(found.abs_max, jnp.abs(kept).max(0))
    assert found.count == 13 and found.samples is None


def test_rows_without_a_token_axis_all_count():
    rows = x().reshape(16, 6)
    np.testing.assert_array_equal(measure(HessianAndMoments(), rows).abs_max, jnp.abs(rows).max(0))


def test_one_pass_calibration_gathers_it():
    params = {"a": {"kernel": jax.random.normal(jax.random.key(3), (6, 4))}}
    batches = [x(0), x(1)]
    cfg = HessianAndMoments(samples=4)
    record = calibrate(lambda p, b: matmul(b, p["a"]["kernel"]), params, batches, cfg)["a/kernel"]
    one, two = (measure(cfg, b) for b in batches)
    np.testing.assert_allclose(record.xtx, one.xtx + two.xtx, rtol=1e-5)
    np.testing.assert_array_equal(record.abs_max, jnp.maximum(one.abs_max, two.abs_max))
    assert record.samples.shape == (8, 6)


def test_refusal():
    with pytest.raises(ValueError, match="HessianAndMoments.samples must be >= 0, got -1"):
        HessianAndMoments(samples=-1)
