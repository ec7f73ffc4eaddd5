import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.affine import pack_affine
from compressjax.models.layers import Dense, Embedding, LayerNorm, RMSNorm
from compressjax.ops import dense


@pytest.fixture(scope="module")
def leaf():
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.integers(0, 16, (64, 6)), jnp.uint8)
    return pack_affine(
        codes,
        jnp.asarray(rng.uniform(0.5, 1.5, (2, 6)), jnp.float32),
        jnp.asarray(rng.integers(0, 16, (2, 6)), jnp.uint8),
        bits=4,
        group=32,
        zero_kind="int",
    )


def test_dense_makes_and_uses_its_parameters():
    x = jnp.ones((2, 3, 4))
    params = Dense(5, use_bias=True).init(jax.random.key(0), x)["params"]
    chex.assert_trees_all_equal_shapes(params, {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)})
    params = {"kernel": params["kernel"], "bias": jnp.arange(5.0)}
    y = Dense(5, use_bias=True).apply({"params": params}, x)
    np.testing.assert_allclose(y[1, 2], params["kernel"].sum(0) + np.arange(5.0), rtol=1e-6)


def test_dense_and_embedding_take_a_leaf_in_place_of_an_array(leaf):
    x = jax.random.normal(jax.random.key(1), (2, 64))
    y = Dense(6).apply({"params": {"kernel": leaf}}, x)
    np.testing.assert_allclose(y, x @ dense(leaf), rtol=1e-5, atol=1e-4)
    table = Embedding(64, 6)
    ids = jnp.array([[3, 0, 63]])
    rows = table.apply({"params": {"embedding": leaf}}, ids)
    np.testing.assert_array_equal(rows, dense(leaf)[ids])
    scores = table.apply({"params": {"embedding": leaf}}, rows, method="attend")
    np.testing.assert_allclose(scores, rows @ dense(leaf).T, rtol=1e-5, atol=1e-3)


def test_dense_casts_a_float32_kernel_to_the_dtype_of_activations():
    y = Dense(5).apply({"params": {"kernel": jnp.ones((4, 5))}}, jnp.ones((2, 4), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("norm", [RMSNorm(1e-5), LayerNorm(1e-5)])
def test_norms_against_float64(norm):
    rng = np.random.default_rng(0)
    x, scale, bias = rng.standard_normal((2, 3, 16)), rng.standard_normal(16), rng.standard_normal(16)
    params = {"scale": jnp.asarray(scale, jnp.float32)}
    if isinstance(norm, LayerNorm):
        params["bias"] = jnp.asarray(bias, jnp.float32)
        want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    else:
        want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(norm.apply({"params": params}, jnp.asarray(x, jnp.float32)), want, atol=2e-6)


@pytest.mark.parametrize("norm", [RMSNorm(1e-5), LayerNorm(1e-5)])
def test_norm_statistics_stay_float32_under_float16(norm):
    """Squares of 1000 overflow float16, so a norm that squares in the input's dtype gives zeros or NaN."""
    x = jnp.asarray(np.linspace(-1000, 1000, 64), jnp.float16)[None]
    params = norm.init(jax.random.key(0), x)["params"]
    y = norm.apply({"params": params}, x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.square(np.asarray(y, np.float64)).mean(), 1.0, rtol=1e-3)
