"""Sparsity by outstanding weights: the mean is kept, and blocks that stand out keep more."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.allocation import owl_sparsity
from compressjax.calibration import Record


def problem():
    """Three layers; one weight in a hundred of the second is large, and one in ten of the third."""
    rng = np.random.default_rng(0)
    w = rng.uniform(0.9, 1.1, size=(3, 20, 10)).astype(np.float32)
    w[1, 0, :2] = 50.0
    w[2, :2, :] = 50.0
    record = Record(count=jnp.float32(1), xtx=jnp.broadcast_to(jnp.eye(20), (3, 20, 20)))
    return {"blocks": {"up": {"kernel": jnp.asarray(w)}}}, {"blocks/up/kernel": record}


def test_blocks_that_stand_out_keep_more_at_the_same_mean():
    params, stats = problem()
    found = owl_sparsity(params, stats, 0.5)
    assert found.mean() == pytest.approx(0.5) and np.ptp(found) == pytest.approx(0.16)
    shares = np.asarray([0.0, 0.01, 0.1])
    expected = 0.5 - 0.16 * shares / 0.1 + (0.16 * shares / 0.1).mean()
    np.testing.assert_allclose(found, expected)


def test_equal_blocks_get_equal_shares():
    params, stats = problem()
    alike = {"blocks": {"up": {"kernel": jnp.ones((3, 20, 10))}}}
    np.testing.assert_allclose(owl_sparsity(alike, stats, 0.3), 0.3)
    with pytest.raises(ValueError, match=r"leaves \[0, 1\)"):
        owl_sparsity(params, stats, 0.02)
    with pytest.raises(ValueError, match="needs Hessian statistics of blocks/up/kernel"):
        owl_sparsity(params, {}, 0.5)
