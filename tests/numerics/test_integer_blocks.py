"""Blocked integers against oracles in int64 and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.integer_blocks import (
    IntegerBlocks,
    block_product,
    blocked_matmul,
    dequantize_blocks,
    largest_code,
    quantize_blocks,
    split_blocks,
)


@pytest.mark.parametrize(
    "rows, inner, cols, most, dtype",
    [(1, 32, 1, 127, jnp.int8), (7, 64, 33, 7, jnp.int8), (5, 256, 3, 127, jnp.int8), (3, 256, 5, 32767, jnp.int16)],
)
def test_products_inside_a_block_are_exact(rows, inner, cols, most, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(-most, most + 1, (rows, inner))
    w = rng.integers(-128, 128, (inner, cols))
    x[0], w[:, 0] = most, -128  # the largest sum there is
    y = block_product(jnp.asarray(x, dtype), jnp.asarray(w, jnp.int8))
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_blocked_product_is_the_float64_sum_of_integer_products(rows):
    rng = np.random.default_rng(rows)
    q = rng.integers(-127, 128, (rows, 3, 32))
    w = rng.integers(-8, 8, (3, 32, 21))
    s_x, s_w = rng.uniform(0.1, 2, (rows, 3)).astype(np.float32), rng.uniform(0.1, 2, (3, 21)).astype(np.float32)
    y = blocked_matmul(
        IntegerBlocks(jnp.asarray(q, jnp.int8), jnp.asarray(s_x)), jnp.asarray(w, jnp.int8), jnp.asarray(s_w)
    )
    terms = np.einsum("mbk,bkr->mbr", q, w) * s_x[:, :, None].astype(np.float64) * s_w.astype(np.float64)
    np.testing.assert_allclose(y, terms.sum(1), rtol=0, atol=1e-6 * np.abs(terms).sum(1).max())


def test_rounding_is_to_the_nearest_code_within_the_limits_of_each_block():
    x = jax.random.normal(jax.random.key(0), (50, 2, 32))
    limit = jnp.asarray([127.0, 7.0])
    blocks = quantize_blocks(x, limit, bits=8)
    assert blocks.codes.dtype == jnp.int8
    np.testing.assert_array_equal(jnp.max(jnp.abs(blocks.codes.astype(jnp.int32)), axis=(0, 2)), [127, 7])
    miss = jnp.abs(dequantize_blocks(blocks) - x)
    assert bool(jnp.all(miss <= blocks.scale[..., None] * 0.5001))


def test_clipping_saturates_and_shrinks_the_step():
    x = jnp.asarray([[[8.0, 4.0] + [1.0] * 30]])
    whole, half = (quantize_blocks(x, jnp.full((1,), 7.0), bits=4, clip=clip) for clip in (1.0, 0.5))
    np.testing.assert_allclose(half.scale, whole.scale / 2)
    assert half.codes[0, 0, :2].tolist() == [7, 7] and whole.codes[0, 0, 0] == 7


def test_a_block_of_zeros_has_scale_one_and_codes_zero():
    blocks = quantize_blocks(jnp.zeros((2, 1, 32)), jnp.full((1,), 7.0), bits=4)
    np.testing.assert_array_equal(blocks.scale, 1)
    np.testing.assert_array_equal(blocks.codes, 0)


def test_the_last_block_is_filled_with_zeros():
    x = jnp.arange(1.0, 41.0)[None]
    blocks = split_blocks(x, 32)
    assert blocks.shape == (1, 2, 32)
    np.testing.assert_array_equal(blocks.reshape(-1)[:40], x[0])
    np.testing.assert_array_equal(blocks.reshape(-1)[40:], 0)


def test_widths():
    assert [largest_code(b) for b in (2, 4, 8, 16)] == [1, 7, 127, 32767]
    for bits in (1, 9, 32):
        with pytest.raises(ValueError, match=f"must be in 2..8 or 16, got {bits}"):
            largest_code(bits)
