"""Arrays, layouts and block sizes that do not fit are refused with names and numbers."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.affine_matmul import AffineLayout, affine_matmul
from pallas_kernels.affine_matmul.config import choose_config
from pallas_kernels.affine_matmul.specs import SPECS
from pallas_kernels.product_config import ProductConfig

GOOD = dict(bits=4, group=32, tile=64, rows=64, cols=48, zero_kind="int")
LAYOUT = AffineLayout(**GOOD)
SHAPES = dict(x=((2, 64), "float32"), codes=((8, 48), "uint32"), scale=((2, 48), "float16"), zero=((2, 8), "uint32"))


def call(layout=LAYOUT, implementation=None, **changed):
    arrays = {name: None if kind is None else jnp.zeros(*kind) for name, kind in (SHAPES | changed).items()}
    return affine_matmul(**arrays, layout=layout, implementation=implementation)


def test_what_fits_is_taken():
    assert call().shape == (2, 48)


@pytest.mark.parametrize(
    "changed, error, what",
    [
        ({"x": ((2, 64), "int32")}, TypeError, "x must be bfloat16, float16 or float32, got int32"),
        ({"x": ((2, 63), "float32")}, ValueError, r"x must end in the 64 inputs of the matrix, got shape \(2, 63\)"),
        ({"codes": ((8, 48), "int32")}, TypeError, "codes must be uint32 words, got int32"),
        ({"codes": ((9, 48), "uint32")}, ValueError, r"codes must have shape \(8, 48\) .* got \(9, 48\)"),
        ({"scale": ((2, 48), "int32")}, TypeError, "scale must be floating point, got int32"),
        ({"scale": ((3, 48), "float16")}, ValueError, r"scale must have shape \(2, 48\) at group 32, got \(3, 48\)"),
        ({"zero": None}, ValueError, "zero_kind='int' does not go with zero missing"),
        ({"zero": ((2, 48), "uint32")}, ValueError, r"integer zero must be uint32 of shape \(2, 8\)"),
        ({"implementation": "triton"}, ValueError, "'triton' cannot run: it needs an NVIDIA GPU"),
        (
            {"implementation": "cuda"},
            ValueError,
            "must be one of triton, xla, interpret, mosaic, jax-triton, got 'cuda'",
        ),
    ],
)
def test_arrays_that_do_not_fit(changed, error, what):
    with pytest.raises(error, match=f"affine_matmul: .*{what}"):
        call(**changed)


@pytest.mark.parametrize(
    "zero, error, what",
    [
        (((2, 48), "int32"), TypeError, "a real zero must be floating"),
        (((1, 48), "float32"), ValueError, "zero must have"),
    ],
)
def test_real_zeros_that_do_not_fit(zero, error, what):
    with pytest.raises(error, match=what):
        call(AffineLayout(**GOOD | {"zero_kind": "real"}), zero=zero)


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"bits": 9}, "bits must be in 1..8, got 9"),
        ({"tile": 96}, "tile must be 32, 64, 128 or 256, got 96"),
        ({"group": 0}, "group must be at least 1, got 0"),
        ({"rows": 0}, "rows and cols must be at least 1, got 0 and 48"),
        ({"zero_kind": "float"}, "zero_kind must be .* got 'float'"),
    ],
)
def test_layouts_that_cannot_be(changed, what):
    with pytest.raises(ValueError, match=f"affine_matmul: {what}"):
        AffineLayout(**GOOD | changed)


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"block_m": 24}, "block_m must be a power of two from 16, got 24"),
        ({"block_n": 8}, "block_n must be"),
        ({"tiles": 3}, "tiles must be a power of two, got 3"),
        ({"splits": 0}, "splits and stages must be at least 1"),
        ({"warps": 3}, "warps must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_configs_that_cannot_be(changed, what):
    good = dict(block_m=16, block_n=32, tiles=1, splits=1, warps=2, stages=2)
    with pytest.raises(ValueError, match=f"ProductConfig.{what}"):
        ProductConfig(**good | changed)


def test_the_rule_gives_a_config_at_every_spec():
    for spec in SPECS:
        config = choose_config(spec.m, spec.layout, jnp.dtype(spec.dtype))
        assert config.block_m * 2 > min(spec.m, 64)
        assert config.splits * 8 * spec.m <= 0.05 * spec.layout.rows * spec.layout.bits / 8 or config.splits == 1
        assert choose_config(spec.m, spec.layout, jnp.dtype(spec.dtype), config) is config


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        jax.eval_shape(lambda *a, lay=spec.layout: affine_matmul(*a, lay, implementation="xla"), *spec.arguments())
