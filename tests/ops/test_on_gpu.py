"""Kernels are taken where the computation runs on a GPU, and cost nothing elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.affine import pack_affine
from compressjax.ops import dense, matmul, on_gpu

W = pack_affine(
    jnp.arange(64 * 32).reshape(64, 32) % 16, jnp.full((2, 32), 0.5), None, bits=4, group=32, zero_kind="none"
)
X = jnp.ones((2, 64), jnp.float32)


def kernels_in(fn, *args) -> int:
    return str(jax.make_jaxpr(fn)(*args)).count("pallas_call")


def test_without_a_gpu_no_kernel_is_even_traced():
    assert kernels_in(lambda x, w: matmul(x, w), X, W) == 0


def test_with_a_gpu_the_platform_of_the_lowering_decides(monkeypatch):
    """A program that is traced where a GPU is the default and lowered for the host runs the formula."""
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.affine_matmul.api.needs_gpu", lambda: None)
    call = lambda x, w: matmul(x, w)  # noqa: E731 - a new function, so that jit has not seen it
    assert kernels_in(call, X, W) == 1
    np.testing.assert_allclose(jax.jit(call)(X, W), X @ dense(W), rtol=1e-6)


@pytest.mark.parametrize("x", [jnp.ones((2, 64), jnp.float64 if jax.config.jax_enable_x64 else jnp.int32)])
def test_what_the_kernel_refuses_takes_the_formula(monkeypatch, x):
    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    assert kernels_in(lambda x, w: matmul(x, w), x, W) == 0
    grouped = pack_affine(
        jnp.zeros((64, 32), jnp.int32),
        jnp.ones((2, 32)),
        None,
        bits=4,
        group=32,
        zero_kind="none",
        g_idx=jnp.arange(64, dtype=jnp.int32) % 2,
    )
    assert kernels_in(lambda x, w: matmul(x, w), X, grouped) == 0
