"""Weights and correlated inputs that the sparsity tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.calibration import Record
from compressjax.quantization.hessian_plan import hessian_plan


def problem(width=32, cols=8, tokens=200, seed=0):
    """A weight, a record of its inputs, and the inputs; channels differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    x = jnp.asarray(x * np.exp(0.5 * rng.normal(size=width)), jnp.float32)
    w = jnp.asarray(rng.standard_t(5, (width, cols)), jnp.float32) / 8
    return w, Record(count=jnp.float32(tokens), xtx=x.T @ x), x


def plan_of(record, group=8, order="none", damp=0.01):
    return jax.jit(lambda r: hessian_plan(r, method="test", group=group, order=order, damp=damp))(record)


def loss(w, q, h):
    """``tr((W - Q)ᵀ H (W - Q))`` per output, float64."""
    miss = np.asarray(w, np.float64) - np.asarray(q, np.float64)
    return np.sum(miss * (np.asarray(h, np.float64) @ miss), axis=0)
