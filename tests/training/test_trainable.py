"""Taken apart and put together again, a leaf is what it was, and its floats get the gradients they deserve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import Transposed, add, pack_affine, pack_codebook
from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul
from compressjax.training import trainable_form

ROWS, COLS = 40, 6


def affine(zero_kind="real", group=16, g_idx=False):
    rng = np.random.default_rng(0)
    groups = -(-ROWS // group)
    zero = {
        "real": jnp.asarray(rng.normal(size=(groups, COLS)), jnp.float16),
        "int": jnp.asarray(rng.integers(0, 8, (groups, COLS))),
        "none": None,
    }[zero_kind]
    return pack_affine(
        jnp.asarray(rng.integers(0, 8, (ROWS, COLS))),
        jnp.asarray(rng.normal(size=(groups, COLS)), jnp.float16),
        zero,
        bits=3,
        group=group,
        zero_kind=zero_kind,
        g_idx=jnp.asarray(rng.integers(0, groups, ROWS), jnp.int32) if g_idx else None,
    )


def codebook():
    rng = np.random.default_rng(1)
    levels = jnp.asarray(rng.normal(size=(3, 5, COLS)), jnp.float16)
    return pack_codebook(jnp.asarray(rng.integers(0, 5, (ROWS, COLS))), levels, group=16)


@leaf()
class Halved:
    """A leaf type without a rule of its own: ``w = factor * codes``."""

    factor: jax.Array
    codes: jax.Array


@dense.register(Halved)
def _(w):
    return w.factor.astype(jnp.float32) * w.codes.astype(jnp.float32)


@logical_shape.register(Halved)
def _(w):
    return w.codes.shape


@matmul.register(Halved)
def _(x, w):
    return x @ dense(w)


def halved():
    codes = np.random.default_rng(2).integers(-3, 4, (ROWS, COLS))
    return Halved(factor=jnp.asarray(0.5, jnp.bfloat16), codes=jnp.asarray(codes, jnp.int8))


LEAVES = {
    "real": affine(),
    "int": affine("int"),
    "none": affine("none"),
    "indexed": affine(g_idx=True),
    "codebook": codebook(),
    "sum": add(affine(), codebook(), jnp.ones((ROWS, COLS), jnp.bfloat16)),
    "sum-packed": add(affine(), halved()),
    "transposed": Transposed(inner=affine()),
    "packed": halved(),
}


@pytest.mark.parametrize("name", LEAVES)
def test_together_again_it_is_the_same(name):
    w = LEAVES[name]
    form = trainable_form(w)
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(form.floats))
    stored = form.store(form.floats)
    assert jax.tree.structure(stored) == jax.tree.structure(w)
    for new, old in zip(jax.tree.leaves(stored), jax.tree.leaves(w), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)
    x = jax.random.normal(jax.random.key(0), (3, logical_shape(w)[0]))
    np.testing.assert_allclose(matmul(x, form.build(form.floats, form.frozen)), x @ dense(w), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["real", "int", "indexed", "codebook", "packed", "sum"])
def test_gradients_of_floats_are_those_of_their_meaning(name):
    """Of a function of the product, by finite differences along a random direction."""
    w = LEAVES[name]
    form = trainable_form(w)
    x = jax.random.normal(jax.random.key(1), (3, logical_shape(w)[0]))

    @jax.jit
    def value(floats):
        return jnp.mean(jnp.sin(matmul(x, form.build(floats, form.frozen)) / 10))

    step = jax.tree.map(lambda a: jax.random.normal(jax.random.key(2), a.shape), form.floats)
    gradient = jax.jit(jax.grad(value))(form.floats)
    slope = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, step))
    ahead, behind = (value(jax.tree.map(lambda a, d, e=e: a + e * d, form.floats, step)) for e in (0.01, -0.01))
    np.testing.assert_allclose(slope, (ahead - behind) / 0.02, rtol=1e-2, atol=1e-4)


def test_only_floats_are_offered_and_integers_are_kept_bit_for_bit():
    w = affine("int")
    form = trainable_form(w)
    assert set(form.floats) == {"scale"}
    new = form.store(jax.tree.map(lambda a: a * 1e9, form.floats))
    np.testing.assert_array_equal(new.codes, w.codes)
    np.testing.assert_array_equal(new.zero, w.zero)
    assert jnp.all(jnp.isfinite(new.scale))


def test_refuses_what_is_not_compressed():
    with pytest.raises(TypeError, match="takes a compressed leaf, got dict"):
        trainable_form({"a": jnp.ones(3)})
    with pytest.raises(TypeError, match="takes a compressed leaf, got ArrayImpl"):
        trainable_form(jnp.ones((3, 3)))
