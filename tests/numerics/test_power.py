import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressjax.numerics import power
from compressjax.numerics.power import decode, encode, fake_quantize, soft_round, top_code
from compressjax.numerics.power_integer import integer_product, square_codes, table_codes

F = jnp.float32


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.floats(0.2, 2.0), st.floats(1e-3, 1e3))
def test_every_level_is_a_fixed_point_and_decoding_is_odd_and_monotone(bits, exponent, scale):
    n = top_code(bits)
    codes = jnp.arange(-n, n + 1, dtype=jnp.float32)
    values = decode(codes, F(exponent), F(scale), bits)
    np.testing.assert_array_equal(encode(values, F(exponent), F(scale), bits), codes)
    np.testing.assert_array_equal(values, -values[::-1])
    assert (np.diff(np.asarray(values)) > 0).all()
    assert values[n] == 0
    np.testing.assert_allclose(values[-1], scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_exponent_one_is_the_symmetric_uniform_grid(bits):
    x, n = drawn(500), top_code(bits)
    peak = jnp.max(jnp.abs(x))
    np.testing.assert_array_equal(encode(x, F(1), peak, bits), jnp.sign(x) * jnp.round(n * (jnp.abs(x) / peak)))


def test_products_of_powers_are_powers_of_products():
    x, y, a = np.abs(drawn(50)), np.abs(drawn(50, seed=1)), 0.37
    n = top_code(8)
    codes = n * (x**a) * n * (y**a)
    np.testing.assert_allclose((codes / n**2) ** (1 / a), x * y, rtol=1e-5)


def test_saturates_and_keeps_zero():
    assert encode(F(5.0), F(0.5), F(1), 4) == 7
    assert encode(F(0.0), F(0.5), F(1), 4) == 0


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_slopes_against_finite_differences(exponent):
    codes = jnp.asarray([-6.4, -2.0, 0.8, 1.0, 3.3, 7.0], jnp.float32)
    at = (codes, F(exponent), F(1.7))
    for place, step in ((0, 1e-2), (1, 1e-3), (2, 1e-2)):
        tangent = [jnp.zeros_like(a) for a in at]
        tangent[place] = jnp.ones_like(at[place])
        slope = jax.jvp(lambda *a: decode(*a, 4), at, tuple(tangent))[1]
        up, down = (tuple(a + s * step * t for a, t in zip(at, tangent, strict=True)) for s in (1, -1))
        np.testing.assert_allclose(slope, (decode(*up, 4) - decode(*down, 4)) / (2 * step), rtol=2e-2, atol=2e-3)


def test_slopes_are_finite_and_not_zero_where_the_true_ones_are_not():
    grad = jax.grad(lambda k, a: decode(k, a, F(1), 4), argnums=(0, 1))
    by_code, by_exponent = grad(F(0.0), F(0.25))
    assert by_code > 0 and by_exponent == 0
    grads = jax.grad(lambda x: fake_quantize(x, F(0.3), F(1), 4).sum())(jnp.asarray([0.0, 0.5, 1.5], jnp.float32))
    np.testing.assert_array_equal(grads, [1, 1, 0])


@pytest.mark.parametrize("beta", [0.5, 4.0, 40.0])
def test_the_staircase_goes_through_the_integers(beta):
    whole = jnp.arange(-3, 4, dtype=jnp.float32)
    np.testing.assert_allclose(soft_round(whole, F(beta)), whole, atol=1e-6)
    rising = soft_round(jnp.linspace(-2, 2, 401), F(beta))
    assert (np.diff(np.asarray(rising)) >= -1e-6).all()


def test_the_staircase_hardens_into_rounding():
    v = jnp.asarray([-1.7, -0.4, 0.3, 0.8, 2.45], jnp.float32)
    np.testing.assert_allclose(soft_round(v, F(300)), jnp.round(v), atol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_squares_are_exact_integers(bits):
    rng, n = np.random.default_rng(bits), top_code(bits)
    x, w = rng.integers(-n, n + 1, (5, 300)), rng.integers(-n, n + 1, (300, 6))
    exact = (x * np.abs(x)).astype(object) @ (w * np.abs(w)).astype(object)
    one = jnp.ones((5, 1), jnp.float32), jnp.ones((1, 6), jnp.float32)
    options = {"exponent": 0.5, "x_bits": bits, "w_bits": bits}
    got = integer_product(jnp.asarray(x), one[0], jnp.asarray(w), one[1], **options)
    np.testing.assert_array_equal(np.round(np.asarray(got, np.float64) * n**4), exact.astype(np.float64))
    assert square_codes(jnp.asarray([-7, 7])).tolist() == [-49, 49]


def test_the_table_is_within_half_a_step():
    bits, a = 8, 0.65
    codes = jnp.arange(-127, 128)
    values = table_codes(codes, F(a), bits).astype(jnp.float32) / 127
    assert float(jnp.max(jnp.abs(values - decode(codes.astype(jnp.float32), F(a), F(1), bits)))) <= 0.5 / 127 + 1e-6


def test_the_table_product_is_near_the_float_one():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.integers(-7, 8, shape), jnp.float32) for shape in ((4, 200), (200, 8)))
    x_scale, w_scale = jnp.abs(drawn(4, 1)) + 1, jnp.abs(drawn(1, 8)) + 1
    a = 0.7
    got = integer_product(x, x_scale, w, w_scale, exponent=a, x_bits=4, w_bits=4)
    exact = decode(x, F(a), x_scale, 4) @ decode(w, F(a), w_scale, 4)
    bound = np.asarray(x_scale * w_scale) * 200 * (1 / 254 * 2 + 1 / 254**2)
    assert (np.abs(np.asarray(got - exact)) <= bound).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"exponent": 0.0}, "exponent must be > 0"),
        ({"x_bits": 9}, "must be in 2..8"),
        ({"w_scale": jnp.ones((2, 8))}, "one per output"),
    ],
)
def test_refusals(change, message):
    options = {"x_scale": jnp.ones((4, 1)), "w_scale": jnp.ones((1, 8)), "exponent": 0.5, "x_bits": 4, "w_bits": 4}
    with pytest.raises(ValueError, match=message):
        integer_product(x_codes=jnp.ones((4, 16)), w_codes=jnp.ones((16, 8)), **{**options, **change})


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("exponent", [0.3, 0.65, 1.0])
def test_the_error_of_the_nearest_codes_is_that_of_encoding_and_decoding(bits, exponent):
    rng = np.random.default_rng(bits)
    x = jnp.asarray(rng.normal(size=(64, 48)), jnp.float32).at[0].set(0)
    a, scale = jnp.float32(exponent), jnp.float32(1.7)
    plain = jnp.square(x - power.decode(power.encode(x, a, scale, bits), a, scale, bits))
    np.testing.assert_allclose(power.nearest_error(x, a, scale, bits), plain, rtol=1e-4, atol=1e-6)
