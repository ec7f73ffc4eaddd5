"""Layers of different kinds in one stack: nothing stored twice, and the same numbers as layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import ByLayer, by_layer, low_rank
from compressjax.leaf.pools import is_pooled, split_pools
from compressjax.ops import dense, logical_shape, matmul, nbits
from compressjax.quantization import RTN, quantize

IN, OUT = 32, 24


def matrix(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(IN, OUT)), jnp.float32)


def rounded(seed, bits):
    return quantize({"kernel": matrix(seed)}, RTN(bits=bits, group=16))["kernel"]


def absent():
    return low_rank(jnp.zeros((IN, 0)), jnp.zeros((0, OUT)))


def layers():
    return [rounded(0, 2), rounded(1, 4), rounded(2, 2), matrix(3), absent()]


def test_dense_and_products_are_those_of_the_layers():
    parts = layers()
    w = by_layer(parts)
    assert logical_shape(w) == (5, IN, OUT) and is_pooled(w)
    np.testing.assert_array_equal(dense(w), jnp.stack([dense(p) for p in parts]))
    x = jax.random.normal(jax.random.key(0), (5, 3, IN))
    rest, join = split_pools({"kernel": w})

    @jax.jit
    def scanned(x, rest):
        return jax.lax.scan(lambda c, a: (c, matmul(a[0], join(a[1])["kernel"])), 0, (x, rest))[1]

    expected = jnp.stack([matmul(x[i], p) for i, p in enumerate(parts)])
    np.testing.assert_allclose(scanned(x, rest), expected, rtol=1e-6, atol=1e-6)
    assert not np.asarray(scanned(x, rest))[4].any()


def test_every_layer_is_stored_once():
    parts = layers()
    indices = 2 * 32 * len(parts)
    assert nbits(by_layer(parts)) == sum(map(nbits, parts)) + indices
    assert nbits(absent()) == 0


def test_layers_of_one_kind_stay_a_plain_stack():
    w = by_layer([rounded(0, 3), rounded(1, 3)])
    assert not isinstance(w, ByLayer) and logical_shape(w) == (2, IN, OUT)


def test_gradients_reach_a_kind_of_plain_numbers():
    w = by_layer([matrix(0), low_rank(jnp.ones((IN, 1)), jnp.ones((1, OUT)))])
    x = jnp.ones((1, IN))

    def loss(variants):
        layer, join = split_pools(ByLayer(variants=variants, kind=w.kind, slot=w.slot))
        return jax.lax.scan(lambda c, one: (c + matmul(x, join(one)).sum(), None), 0.0, layer)[0]

    plain, thin = jax.grad(loss)(w.variants)
    np.testing.assert_allclose(plain[0], jnp.ones((IN, OUT)))
    np.testing.assert_allclose(thin.left[0], jnp.full((IN, 1), OUT))


def test_refuses_what_cannot_be_stacked():
    with pytest.raises(ValueError, match="all of one shape"):
        by_layer([matrix(0), matrix(0).T])
    with pytest.raises(ValueError, match="at least one weight"):
        by_layer([])
    inner = jax.tree.map(lambda a: a, by_layer(layers()))
    one = ByLayer(variants=inner.variants, kind=inner.kind[0], slot=inner.slot[0])
    with pytest.raises(TypeError, match="choice by layer"):
        by_layer([one, one])
