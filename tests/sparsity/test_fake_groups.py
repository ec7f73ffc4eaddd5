"""The trainable form of leaves: bit for bit the leaf, there and back, with the stated gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import pack_affine
from compressjax.leaf.group_sparse import pack_group_sparse
from compressjax.leaf.n_m import pack_n_m
from compressjax.ops import dense
from compressjax.sparsity.fake_groups import fake_round, fake_weight, from_fake, to_fake

BITS, TOP = 3, 7


def affine(rows=24, cols=5, group=8, zero_kind="int", seed=0):
    rng = np.random.default_rng(seed)
    groups = -(-rows // group)
    zero = {"int": rng.integers(0, 8, (groups, cols)), "real": rng.random((groups, cols)).astype(np.float16) * 7}
    return pack_affine(
        jnp.asarray(rng.integers(0, 8, (rows, cols))),
        jnp.asarray(rng.uniform(0.01, 0.1, (groups, cols)), jnp.float16),
        None if zero_kind == "none" else jnp.asarray(zero[zero_kind]),
        bits=BITS,
        group=group,
        zero_kind=zero_kind,
    )


def group_sparse(layout):
    rng = np.random.default_rng(1)
    kept = np.array([[0, 1, 0, 0, 1], [2, 2, 1, 2, 2]]) if layout == "ell" else np.array([0, 1, 5, 6, 7, 14])
    return pack_group_sparse(
        jnp.asarray(rng.integers(0, 16, (24, 5))),
        jnp.asarray(rng.uniform(0.01, 0.1, (3, 5)), jnp.float16),
        jnp.asarray(rng.integers(0, 16, (3, 5))),
        jnp.asarray(kept, jnp.int32),
        bits=4,
        group=8,
        layout=layout,
    )


def n_m():
    order = np.argsort(np.random.default_rng(2).random((6, 4, 5)), axis=1)
    positions = np.sort(order[:, :2], axis=1).reshape(12, 5)
    return pack_n_m(affine(12, group=4), jnp.asarray(positions, jnp.int32), n=2, m=4)


LEAVES = {
    "affine": affine,
    "affine with a short group": lambda: affine(22),
    "affine, real zero": lambda: affine(zero_kind="real"),
    "affine, no zero": lambda: affine(zero_kind="none"),
    "ell": lambda: group_sparse("ell"),
    "bsr": lambda: group_sparse("bsr"),
    "2:4": n_m,
}


@pytest.mark.parametrize(
    "name",
    [
        *("affine with a short group", "bsr", "2:4"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("affine", "affine, real zero", "affine, no zero", "ell")),
    ],
)
def test_there_and_back_bit_for_bit(name):
    w = LEAVES[name]()

    @jax.jit
    def both(w):
        fake, mask, kind = to_fake(w)
        moved = fake._replace(w=fake.w * 1.3, scale=fake.scale * 0.9)
        stored = from_fake(w, moved)
        return fake_weight(fake, mask, kind), from_fake(w, fake), fake_weight(moved, mask, kind), dense(stored), stored

    same, again, fake, decoded, stored = both(w)
    np.testing.assert_array_equal(same, dense(w))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(w), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(fake, decoded)
    assert jax.tree.structure(stored) == jax.tree.structure(w)
    assert np.any(np.asarray(decoded) != np.asarray(same))


def parts(integer_zero, seed=3):
    rng = np.random.default_rng(seed)
    w = rng.uniform(-0.6, 0.6, (4, 6, 5)).astype(np.float32)
    scale = rng.uniform(0.05, 0.15, (4, 1, 5)).astype(np.float32)
    zero = rng.uniform(0, 7, (4, 1, 5)).astype(np.float32)
    ct = rng.normal(size=w.shape).astype(np.float32)
    # Away from the jumps of rounding and from the ends of the range, where one-sided slopes differ.
    raw = w / scale + (np.round(zero) if integer_zero else zero)
    edge = np.abs(raw - np.floor(raw) - 0.5) < 0.02
    return w, scale, zero, np.where(edge, 0, ct)


def surrogate(w, scale, zero, at, integer_zero):
    """The rounding with its jumps held where they were at ``at``: smooth, so finite differences mean something."""
    w0, scale0, zero0 = at
    offset = zero + (np.round(zero0) - zero0 if integer_zero else 0)
    raw0 = np.round(w0 / scale0) + np.round(zero0) if integer_zero else np.round(w0 / scale0 + zero0)
    offset0 = np.round(zero0) if integer_zero else zero0
    raw = w / scale + offset + (raw0 - offset0 - w0 / scale0)
    low, high = raw0 < 0, raw0 > TOP
    return scale * (np.where(low, 0, np.where(high, TOP, raw)) - offset)


@pytest.mark.parametrize("integer_zero", [True, False])
def test_gradients_are_finite_differences_of_the_smooth_surrogate(integer_zero):
    *point, ct = parts(integer_zero)
    wide = [a.astype(np.float64) for a in point]
    value, pull = jax.vjp(lambda *a: fake_round(*a, BITS, integer_zero), *(jnp.asarray(a) for a in point))
    np.testing.assert_allclose(value, surrogate(*wide, wide, integer_zero), rtol=1e-5, atol=1e-5)
    grads = pull(jnp.asarray(ct))
    step = 1e-6
    for which, grad in enumerate(grads):
        up, down = (
            surrogate(*(a + s * step * (i == which) for i, a in enumerate(wide)), wide, integer_zero) for s in (1, -1)
        )
        slope = ct * (up - down) / (2 * step)
        if which:
            slope = slope.sum(1, keepdims=True)
        np.testing.assert_allclose(grad, slope, rtol=1e-3, atol=1e-3)


def test_the_stated_rules_in_each_range():
    one = jnp.ones((1, 1))
    slopes = jax.jit(jax.grad(lambda *a: fake_round(*a, BITS)[0, 0], argnums=(0, 1, 2)))
    for w, expected in ((-1.0, (0.0, -2.0, -0.1)), (0.13, (1.0, 1 - 1.3, 0.0)), (2.0, (0.0, 7.0 - 2.0, -0.1))):
        grads = slopes(w * one, 0.1 * one, 2.2 * one)
        np.testing.assert_allclose([float(g[0, 0]) for g in grads], expected, rtol=1e-4, atol=1e-5)


def test_a_pruned_weight_gets_no_gradient_whatever_its_zero():
    @jax.jit
    def moved(w):
        fake, mask, kind = to_fake(w)
        fake = fake._replace(w=fake.w + 0.3, zero=fake.zero + 1.4)

        def loss(fake):
            made = fake_weight(fake, mask, kind)
            return jnp.sum(jnp.sin(made)), made

        return mask, *jax.grad(loss, has_aux=True)(fake)

    mask, grads, made = moved(LEAVES["bsr"]())
    assert not np.any(np.where(mask, 0, grads.w)) and np.any(grads.w)
    absent = ~np.asarray(mask).reshape(3, 8, 5)[:, 0]
    assert not np.any(np.where(absent, grads.scale, 0)) and not np.any(np.where(absent, grads.zero, 0))
    assert not np.any(np.where(mask, 0, made))


def test_refuses_leaves_it_cannot_train():
    w = pack_affine(
        jnp.zeros((8, 2), jnp.int32),
        jnp.ones((1, 2)),
        None,
        bits=3,
        group=8,
        zero_kind="none",
        g_idx=jnp.zeros((8,), jnp.int32),
    )
    with pytest.raises(ValueError, match="recovery needs contiguous groups"):
        to_fake(w)
    dense_values = pack_n_m(jnp.zeros((4, 2)), jnp.asarray([[0, 0], [1, 1]] * 2, jnp.int32), n=2, m=4)
    with pytest.raises(TypeError, match="recovery of N:M leaves needs Affine values"):
        to_fake(dense_values)
