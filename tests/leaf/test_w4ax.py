"""The W4Ax product: exact in integers, a permutation that changes nothing, straight-through gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import W4Ax, pack_w4ax
from compressjax.leaf.w4ax import act_as_read, activation_bits, quantize_act
from compressjax.ops import dense, matmul, nbits


def leaf(rows=96, cols=20, *, block=32, n_hi=1, perm=None, lead=(), seed=0, **options) -> W4Ax:
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(-8, 8, (*lead, rows, cols)))
    scale = jnp.asarray(rng.uniform(0.05, 0.2, (*lead, -(-rows // block), cols)), jnp.float16)
    return pack_w4ax(codes, scale, perm, n_hi, block=block, **options)


def activations(tokens, width=96, seed=0):
    return jax.random.normal(jax.random.key(seed), (tokens, width))


@pytest.mark.parametrize("tokens", [1, 128])
@pytest.mark.parametrize("n_hi", [0, 1, 3])
def test_product_is_the_float64_sum_of_integer_products(tokens, n_hi):
    w = leaf(n_hi=n_hi, perm=jnp.asarray(np.random.default_rng(5).permutation(96)))
    x = activations(tokens)
    codes, s_x = quantize_act(x, w)
    assert int(jnp.max(jnp.abs(codes[:, n_hi:].astype(jnp.int32)), initial=0)) <= 7
    q_w = np.random.default_rng(0).integers(-8, 8, (96, 20)).reshape(3, 32, 20)
    inner = np.einsum("mbk,bkr->mbr", np.asarray(codes, np.int64), q_w)
    terms = inner * np.asarray(s_x, np.float64)[..., None] * np.asarray(w.scale, np.float64)
    np.testing.assert_allclose(matmul(x, w), terms.sum(1), rtol=0, atol=1e-6 * np.abs(terms).sum(1).max())


def test_order_of_the_inputs_is_no_matter_when_activations_are_all_but_exact():
    perm = np.random.default_rng(2).permutation(96)
    codes = np.random.default_rng(0).integers(-8, 8, (96, 20))
    scale = jnp.full((3, 20), 0.25, jnp.float16)
    wide = {"block": 32, "hi_bits": 16, "lo_bits": 16}
    plain = pack_w4ax(jnp.asarray(codes), scale, None, 0, **wide)
    moved = pack_w4ax(jnp.asarray(codes[perm]), scale, jnp.asarray(perm), 0, **wide)
    np.testing.assert_array_equal(dense(plain), dense(moved))
    np.testing.assert_array_equal(dense(plain), codes * 0.25)
    x = activations(9)
    exact = np.asarray(x, np.float64) @ (codes * 0.25)
    step = float(jnp.max(jnp.abs(x))) / 32767
    for w in (plain, moved):
        np.testing.assert_allclose(matmul(x, w), exact, atol=0.5 * step * np.abs(codes * 0.25).sum(0).max() + 1e-4)


def test_an_outlier_hurts_its_own_block_only_and_not_when_the_block_is_wide():
    x = activations(64).at[:, 3].mul(60.0)
    miss = [jnp.mean((act_as_read(x, leaf(n_hi=n)) - x).reshape(64, 3, 32) ** 2, axis=(0, 2)) for n in (0, 1)]
    np.testing.assert_array_equal(miss[0][1:], miss[1][1:])
    assert float(miss[1][0]) < float(miss[0][0]) / 20


def test_layers_have_their_own_number_of_wide_blocks():
    stacked = leaf(lead=(2,), n_hi=jnp.asarray([0, 3]))
    x = activations(4)
    per_layer = jax.vmap(lambda w: act_as_read(x, w))(stacked)
    for layer, n_hi in enumerate((0, 3)):
        one = jax.tree.map(lambda a, layer=layer: a[layer], stacked)
        np.testing.assert_array_equal(per_layer[layer], act_as_read(x, dataclasses.replace(one, n_hi=jnp.int32(n_hi))))
    assert activation_bits(stacked) == 6 + 1


def test_bits_are_those_of_the_layout():
    perm = jnp.asarray(np.random.default_rng(0).permutation(256))
    w = leaf(256, 100, block=128, perm=perm)
    assert nbits(w) == 4 * 25600 + 16 * 2 * 100 + 16 * 256 + 32
    assert activation_bits(w) == 6 + 32 / 128
    assert nbits(leaf(200, 100, block=128)) == 4 * 25600 + 16 * 2 * 100 + 32  # the padding is stored


def test_gradients_pass_straight_through_and_stop_where_values_saturate():
    w = leaf(act_clip=0.5)
    x = activations(3)
    g = jax.random.normal(jax.random.key(9), (3, 20))
    grad = jax.grad(lambda x: jnp.sum(matmul(x, w) * g))(x)
    blocks = np.asarray(x).reshape(3, 3, 32)
    beyond = (np.abs(blocks) > 0.5001 * np.abs(blocks).max(-1, keepdims=True)).reshape(3, 96)
    assert 0 < beyond.sum() < beyond.size
    np.testing.assert_allclose(grad, np.where(beyond, 0, g @ dense(w).T), atol=1e-5)


def test_scales_get_the_gradient_of_the_quantised_product():
    w = leaf()
    w = dataclasses.replace(w, scale=w.scale.astype(jnp.float32))
    x = activations(5)

    def out(scale):
        return jnp.sum(jnp.sin(matmul(x, dataclasses.replace(w, scale=scale))))

    def oracle(scale):
        return jnp.sum(jnp.sin(act_as_read(x, w) @ dense(dataclasses.replace(w, scale=scale))))

    np.testing.assert_allclose(jax.grad(out)(w.scale), jax.grad(oracle)(w.scale), rtol=1e-4, atol=1e-4)


def test_trace_does_not_grow_with_the_number_of_blocks():
    count = [len(str(jax.make_jaxpr(matmul)(activations(2, n), leaf(n)))) for n in (96, 1024)]
    assert count[1] < 1.1 * count[0]


@pytest.mark.parametrize(
    "message, options",
    [
        ("block must be one of .*, got 48", {"block": 48}),
        ("block=128 is wider than the 96 inputs", {"block": 128}),
        ("lo_bits must be at most hi_bits=4, got 8", {"hi_bits": 4, "lo_bits": 8}),
        ("hi_bits must be in 2..8 or 16, got 9", {"hi_bits": 9}),
        (r"act_clip must be in \(0, 1\], got 0", {"act_clip": 0.0}),
        ("n_hi must be in 0..3, got 4", {"n_hi": 4}),
        ("perm is not a permutation of 0..95", {"perm": jnp.zeros(96, jnp.int32)}),
        (r"perm must be \(96,\)", {"perm": jnp.arange(64)}),
    ],
)
def test_refusals(message, options):
    with pytest.raises(ValueError, match=message):
        leaf(**options)


def test_scales_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"scale must be \(3, 20\)"):
        pack_w4ax(jnp.zeros((96, 20), jnp.int32), jnp.ones((2, 20)), None, 0, block=32)
