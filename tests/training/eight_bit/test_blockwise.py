import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.training.eight_bit import BlockQ, code_map, dequantize_blockwise, quantize_blockwise
from compressjax.training.eight_bit.blockwise import scale_shape

SIGNED, UNSIGNED = code_map("signed"), code_map("unsigned")


def wide(shape, seed=0):
    """Values over seven orders of magnitude."""
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.normal(size=shape) * np.exp(3 * draw.normal(size=shape)), jnp.float32)


def by_search(x, values, block):
    """Codes and scales of blocks of a flat array by trying all 256 values, in float64."""
    codes, scales = [], []
    for start in range(0, len(x), block):
        part = np.asarray(x[start : start + block], np.float32)
        scale = np.abs(part).max()
        y = part / scale if scale else part
        codes.append(np.abs(values.astype(np.float64)[None] - y.astype(np.float64)[:, None]).argmin(axis=1))
        scales.append(scale)
    return np.concatenate(codes), np.asarray(scales)


@pytest.mark.parametrize("name", ["signed", "unsigned", "linear_signed"])
def test_codes_are_the_nearest_values(name):
    x = wide((10_001,))
    x = jnp.abs(x) if name == "unsigned" else x
    q = quantize_blockwise(x, code_map(name))
    codes, scales = by_search(np.asarray(x), code_map(name), 256)
    np.testing.assert_array_equal(q.codes, codes)  # argmin takes the lower of two that tie, as we do
    np.testing.assert_array_equal(q.absmax, scales)
    assert q.codes.dtype == jnp.uint8 and q.absmax.dtype == jnp.float32


def test_every_value_of_the_map_and_every_midpoint_finds_its_place():
    middles = ((SIGNED[1:].astype(np.float64) + SIGNED[:-1]) / 2).astype(np.float32)
    x = np.concatenate([SIGNED, middles, np.nextafter(middles, 2), np.nextafter(middles, -2)]).astype(np.float32)
    q = quantize_blockwise(jnp.asarray(x), SIGNED, 2048)
    distance = np.abs(SIGNED.astype(np.float64)[None] - x.astype(np.float64)[:, None])
    np.testing.assert_array_equal(q.codes, distance.argmin(axis=1))


def test_the_error_stays_within_half_the_gap():
    x = wide((40, 256))
    back = dequantize_blockwise(quantize_blockwise(x, SIGNED), SIGNED)
    scale = np.abs(np.asarray(x, np.float64)).max(axis=1, keepdims=True)
    y = np.asarray(x, np.float64) / scale
    upper = np.clip(np.searchsorted(SIGNED, y), 1, 255)
    half = (SIGNED[upper] - SIGNED[upper - 1]) / 2
    half = np.where(y < SIGNED[0], 1 + SIGNED[0], half)  # -1 is not in the map
    assert np.all(np.abs(np.asarray(back) - np.asarray(x, np.float64)) <= scale * (half + 2e-7))


def test_the_largest_value_is_exact_when_positive():
    x = jnp.asarray([3.7, -1.0, 0.2]), jnp.asarray([-3.7, 1.0, 0.2])
    assert dequantize_blockwise(quantize_blockwise(x[0], SIGNED), SIGNED)[0] == x[0][0]
    np.testing.assert_allclose(dequantize_blockwise(quantize_blockwise(x[1], SIGNED), SIGNED)[0], -3.7 * 0.99296875)


def test_what_was_rounded_once_keeps_its_codes():
    x = wide((8, 256)).at[:, 0].set(1e5)  # the largest is positive, so the scales stay
    q = quantize_blockwise(x, SIGNED)
    again = quantize_blockwise(dequantize_blockwise(q, SIGNED), SIGNED)
    np.testing.assert_array_equal(again.codes, q.codes)
    np.testing.assert_array_equal(again.absmax, q.absmax)


def test_scaling_by_a_power_of_two_changes_the_scales_alone():
    x = wide((512,))
    q, big = quantize_blockwise(x, SIGNED), quantize_blockwise(x * 1024, SIGNED)
    np.testing.assert_array_equal(q.codes, big.codes)
    np.testing.assert_array_equal(q.absmax * 1024, big.absmax)


def test_blocks_do_not_see_each_other():
    x = wide((3, 300))
    for mode in ("flat", "last"):
        q = quantize_blockwise(x, SIGNED, 64, axis_mode=mode)
        other = quantize_blockwise(x.at[0, 10].set(1e9), SIGNED, 64, axis_mode=mode)
        same = np.ones(q.codes.shape, bool)
        same[0, :64] = False
        np.testing.assert_array_equal(np.asarray(q.codes)[same], np.asarray(other.codes)[same])
        assert np.sum(np.asarray(q.absmax) != np.asarray(other.absmax)) == 1


def test_a_last_block_that_is_short_has_a_scale_of_its_own():
    x = jnp.concatenate([jnp.full((256,), 8.0), jnp.asarray([0.5])])
    q = quantize_blockwise(x, SIGNED)
    np.testing.assert_array_equal(q.absmax, [8.0, 0.5])
    np.testing.assert_array_equal(dequantize_blockwise(q, SIGNED), x)


@pytest.mark.parametrize("mode", ["flat", "last"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (257,), (3, 5, 300), (2, 0)])
def test_every_shape_comes_back(shape, mode):
    x = wide(shape)
    q = quantize_blockwise(x, SIGNED, axis_mode=mode)
    assert q.shape == q.codes.shape == shape
    assert q.absmax.shape == scale_shape(shape, 256, mode)
    back = dequantize_blockwise(q, SIGNED)
    assert back.shape == shape
    np.testing.assert_allclose(back, x, atol=float(np.max(np.abs(x), initial=0)) * 0.01)


def test_rows_of_the_last_axis_are_blocks_of_a_flat_row():
    x = wide((4, 300))
    q = quantize_blockwise(x, SIGNED, 128, axis_mode="last")
    for row in range(4):
        alone = quantize_blockwise(x[row], SIGNED, 128)
        np.testing.assert_array_equal(q.codes[row], alone.codes)
        np.testing.assert_array_equal(q.absmax[row], alone.absmax)


def test_zeros_and_denormals_are_zero_and_nothing_overflows():
    for x in (jnp.zeros((300,)), jnp.full((300,), 1e-40), jnp.full((300,), -1e-42)):
        q = quantize_blockwise(x, SIGNED, keep_sign=True)
        assert np.all(np.asarray(q.codes) == 127) and not np.any(q.absmax)
        assert not np.any(dequantize_blockwise(q, SIGNED))
    assert np.all(np.isfinite(dequantize_blockwise(quantize_blockwise(jnp.full((9,), 3e38), SIGNED), SIGNED)))


def test_negative_values_keep_their_sign_when_asked():
    x = jnp.asarray([1.0, -1e-9, 1e-9, 0.0])
    plain = dequantize_blockwise(quantize_blockwise(x, SIGNED), SIGNED)
    kept = dequantize_blockwise(quantize_blockwise(x, SIGNED, keep_sign=True), SIGNED)
    np.testing.assert_array_equal(plain, [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(kept, [1.0, -5.5e-7, 0.0, 0.0], rtol=1e-6)


def test_negative_values_are_zero_without_negative_codes():
    back = dequantize_blockwise(quantize_blockwise(jnp.asarray([1.0, -0.7]), UNSIGNED), UNSIGNED)
    np.testing.assert_array_equal(back, [1.0, 0.0])


def test_floored_zeros_read_as_the_least_positive_value():
    q = quantize_blockwise(jnp.asarray([2.0, 1e-12, 1.0]), UNSIGNED)
    floored = dequantize_blockwise(q, UNSIGNED, floor_zeros=True)
    np.testing.assert_allclose(floored[:2], [2.0, 2 * 3.25e-7], rtol=1e-6)
    np.testing.assert_array_equal(floored[2], dequantize_blockwise(q, UNSIGNED)[2])


def test_rounding_at_random_has_its_mean_at_the_value():
    x = jnp.asarray([1.0, 0.34, -0.0721, 3.3e-4, -1.0])
    draws = jax.vmap(lambda key: dequantize_blockwise(quantize_blockwise(x, SIGNED, 8, key=key), SIGNED))(
        jax.random.split(jax.random.key(0), 10_000)
    )
    upper = np.clip(np.searchsorted(SIGNED, np.asarray(x)), 1, 255)
    gap = SIGNED[upper] - SIGNED[upper - 1]
    mean = np.asarray(draws).mean(axis=0)
    np.testing.assert_array_less(np.abs(mean - np.asarray(x))[:4], 4 * gap[:4] / 2 / 100 + 1e-7)
    assert len(np.unique(draws[:, 1])) == 2
    np.testing.assert_array_equal(np.unique(draws[:, 4]), SIGNED[:1])  # nothing lies below the least value


def test_a_number_that_is_none_spoils_its_block_only():
    x = wide((512,)).at[3].set(jnp.nan)
    back = dequantize_blockwise(quantize_blockwise(x, SIGNED), SIGNED)
    assert np.all(np.isnan(back[:256])) and np.all(np.isfinite(back[256:]))


def test_bfloat16_in_and_out():
    x = wide((300,)).astype(jnp.bfloat16)
    q = quantize_blockwise(x, SIGNED)
    same = quantize_blockwise(x.astype(jnp.float32), SIGNED)
    np.testing.assert_array_equal(q.codes, same.codes)
    assert dequantize_blockwise(q, SIGNED, jnp.bfloat16).dtype == jnp.bfloat16


def test_refusals():
    x = jnp.ones((4,))
    with pytest.raises(TypeError, match="x must be floating, got int32"):
        quantize_blockwise(jnp.ones((4,), jnp.int32), SIGNED)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        quantize_blockwise(x, SIGNED, 0)
    with pytest.raises(ValueError, match="axis_mode must be 'flat' or 'last', got 'rows'"):
        quantize_blockwise(x, SIGNED, axis_mode="rows")
    with pytest.raises(ValueError, match="sorted"):
        quantize_blockwise(x, SIGNED[::-1])


def test_a_block_is_a_pytree_whose_layout_is_static():
    q = quantize_blockwise(jnp.ones((4,)), SIGNED)
    assert len(jax.tree.leaves(q)) == 2
    assert isinstance(jax.jit(lambda q: q)(q), BlockQ)
