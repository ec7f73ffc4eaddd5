import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models.config import RopeScaling
from compressjax.models.rope import rotary_angles, rotary_frequencies, rotate

LLAMA31 = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)


def heads(seed, length=1, width=16):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((1, length, 1, width)), jnp.float32)


def rotated(x, position, scaling=None):
    return rotate(x, *rotary_angles(jnp.array([[position]]), x.shape[-1], 100.0, scaling))


@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=3.0), LLAMA31])
def test_products_depend_on_the_distance_alone(scaling):
    q, k = heads(0), heads(1)
    near = jnp.sum(rotated(q, 7, scaling) * rotated(k, 2, scaling))
    far = jnp.sum(rotated(q, 107, scaling) * rotated(k, 102, scaling))
    other = jnp.sum(rotated(q, 7, scaling) * rotated(k, 3, scaling))
    np.testing.assert_allclose(near, far, rtol=1e-4)
    assert abs(near - other) > 1e-2


def test_rotation_keeps_lengths_and_starts_at_the_identity():
    x = heads(0)
    np.testing.assert_array_equal(rotated(x, 0), x)
    np.testing.assert_allclose(jnp.linalg.norm(rotated(x, 1234)), jnp.linalg.norm(x), rtol=1e-6)


def test_pairs_are_halves_apart():
    x = jnp.zeros((1, 1, 1, 8)).at[..., 1].set(1.0)
    turned = np.asarray(rotated(x, 3))[0, 0, 0]
    angle = 3 * 100.0 ** (-2 / 8)
    want = np.zeros(8)
    want[1], want[5] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(turned, want, atol=1e-6)


def test_frequencies_without_scaling():
    np.testing.assert_allclose(rotary_frequencies(8, 16.0), [1, 0.5, 0.25, 0.125], rtol=1e-7)


def test_linear_scaling_divides_positions():
    np.testing.assert_allclose(rotary_frequencies(8, 16.0, RopeScaling(factor=4.0)), [0.25, 0.125, 0.0625, 0.03125])


def test_llama3_scaling_has_three_regimes():
    plain, scaled = rotary_frequencies(128, 500000.0), rotary_frequencies(128, 500000.0, LLAMA31)
    ratio, wavelength = scaled / plain, 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1.0)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 8, rtol=1e-6)
    between = ratio[(wavelength > 8192 / 4) & (wavelength < 8192)]
    assert between.size > 2 and (between > 1 / 8).all() and (between < 1).all()
    assert (np.diff(ratio) <= 1e-7).all()


def test_angles_are_float32_and_no_matrix_product():
    """A product on the matrix unit would follow the backend's matmul precision, in which 8001 and 8000 are one."""
    positions = jnp.array([[8000, 8001]])
    cos, sin = rotary_angles(positions, 64, 10000.0)
    assert cos.dtype == sin.dtype == jnp.float32
    want = np.array([[8000.0, 8001.0]])[..., None] * 10000.0 ** (-np.arange(32) / 32)
    np.testing.assert_allclose(cos, np.cos(want), atol=8001 * 2**-22)
    jaxpr = jax.make_jaxpr(lambda p: rotary_angles(p, 64, 10000.0))(positions)
    assert "dot_general" not in str(jaxpr)


def test_rotation_of_bfloat16_turns_in_float32():
    x = heads(0).astype(jnp.bfloat16)
    turned = rotated(x, 5)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, rotated(x.astype(jnp.float32), 5).astype(jnp.bfloat16))
