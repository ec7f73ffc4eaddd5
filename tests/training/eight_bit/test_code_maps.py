import numpy as np
import pytest

from compressjax.training.eight_bit.code_maps import checked_map, code_map, create_dynamic_map, create_linear_map


@pytest.mark.parametrize("make", [create_dynamic_map, create_linear_map])
@pytest.mark.parametrize("signed", [True, False])
def test_a_map_has_256_increasing_values_with_zero_and_one(make, signed):
    values = make(signed)
    assert values.shape == (256,) and values.dtype == np.float32
    assert np.all(np.diff(values) > 0)
    assert values[127 if signed else 0] == 0.0 and values[-1] == 1.0
    assert (values.min() < 0) == signed


def test_the_dynamic_maps_have_the_published_values():
    signed, unsigned = create_dynamic_map(True), create_dynamic_map(False)
    np.testing.assert_allclose(signed[0], -0.99296874, rtol=1e-7)
    assert -1.0 not in signed
    np.testing.assert_allclose(signed[128], 5.5e-7, rtol=1e-6)
    np.testing.assert_allclose(unsigned[1:4], [3.25e-7, 7.75e-7, 2.125e-6], rtol=1e-6)
    np.testing.assert_allclose(unsigned[-3:], [0.98945, 0.99648, 1.0], atol=1e-5)
    # All but the 1 have a mirror image.
    assert set(-signed[signed < 0]) == set(signed[signed > 0]) - {np.float32(1.0)}


@pytest.mark.parametrize("signed", [True, False])
def test_each_decade_is_divided_twice_as_finely_as_the_one_below(signed):
    values = create_dynamic_map(signed).astype(np.float64)
    for i in range(7):
        top = 10.0 ** (i - 6)
        inside = values[(values > top / 10) & (values < top)]
        assert len(inside) == 2 ** (i + (not signed))
        if len(inside) > 1:
            np.testing.assert_allclose(np.diff(inside), 0.9 * top / len(inside), rtol=1e-4)


def test_a_shorter_code_has_fewer_decades():
    values = create_dynamic_map(True, max_exponent_bits=3, total_bits=4)
    np.testing.assert_allclose(values[8:], [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0], rtol=1e-6)


def test_named_maps_are_shared_and_cannot_be_written():
    assert code_map("signed") is code_map("signed")
    with pytest.raises(ValueError, match="read-only"):
        code_map("unsigned")[0] = 1.0


def test_refusals():
    with pytest.raises(ValueError, match="max_exponent_bits must be total_bits - 1 = 7, got 5"):
        create_dynamic_map(True, 5)
    with pytest.raises(ValueError, match=r"total_bits must be in 2..8, codes are bytes, got 9"):
        create_dynamic_map(True, 8, 9)
    with pytest.raises(ValueError, match="map must be one of .* got 'float8'"):
        code_map("float8")
    with pytest.raises(ValueError, match=r"shape \(256,\), got \(255,\)"):
        checked_map(np.linspace(-1, 1, 255))
    with pytest.raises(ValueError, match="sorted"):
        checked_map(create_dynamic_map()[::-1])
    with pytest.raises(ValueError, match="hold 0"):
        checked_map(np.linspace(-1, 1, 256))
