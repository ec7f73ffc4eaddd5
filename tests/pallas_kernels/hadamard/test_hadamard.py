"""Rotation, and rotation with rounding and packing, in the interpreter against float64; products of rounded rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.hadamard import HadamardLayout, block_hadamard, hadamard_quantize
from pallas_kernels.hadamard.config import HadamardConfig, choose_config
from pallas_kernels.hadamard.layout import sylvester
from pallas_kernels.hadamard.reference import block_hadamard_reference, levels_reference, unit_reference
from pallas_kernels.hadamard.specs import SPECS

pytestmark = pytest.mark.kernels


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


CASES = {  # shape, bits, block, tile, rows of a program, dtype
    "several-chunks": ((5, 192), 4, 64, 64, 2, "float32"),
    "tile-wider-than-block": ((3, 256), 1, 32, 128, 1, "bfloat16"),
    "block-wider-than-tile": ((2, 3, 128), 2, 64, 32, 4, "float32"),
    "many-rows": ((17, 64), 8, 16, 32, 16, "float16"),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_in_few_bits(light_jit, name):
    shape, bits, block, tile, rows, dtype = CASES[name]
    layout = HadamardLayout(bits=bits, block=block, tile=tile, clip=2.0)
    config = HadamardConfig(values=256, rows=rows, warps=4, stages=2)
    x = normal(shape, dtype)

    def all_of(x):
        found = [hadamard_quantize(x, layout, implementation=i, config=config) for i in ("interpret", "xla")]
        return found, block_hadamard(x, block, implementation="interpret", config=config)

    (ours, formula), turned = light_jit(all_of)(x)
    flat = np.asarray(x).reshape(-1, shape[-1])
    z, unit = block_hadamard_reference(flat, block), unit_reference(flat, layout)
    position = z / unit[:, None]
    for got in (ours, formula):
        assert got.unit.shape == got.level_sums.shape == shape[:-1]
        np.testing.assert_allclose(got.unit.reshape(-1), unit, rtol=1e-6)
        levels = levels_reference(got.words.reshape(flat.shape[0], -1), layout)
        wanted = np.clip(np.floor(position), -layout.half, layout.half - 1)
        near = np.abs(position - np.round(position)) < 1e-4  # a position on an edge may fall to either side of it
        np.testing.assert_array_equal(levels[~near], wanted[~near])
        assert np.mean(near) < 0.01 and np.all(np.abs(levels - wanted) <= near)
        np.testing.assert_array_equal(got.level_sums.reshape(-1), levels.sum(axis=1))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(turned, np.float64).reshape(z.shape), z, rtol=eps, atol=2e-6)


def test_products_of_rounded_rows_come_from_integers(light_jit):
    """``x w^T`` from levels, units and their sums; without the sums it is wrong."""
    layout = HadamardLayout(bits=4, block=32, tile=64, clip=2.5)
    x, w = normal((4, 64)), normal((5, 64), seed=1)

    def rounded(a):
        return hadamard_quantize(a, layout, implementation="interpret")

    a, b = light_jit(lambda x, w: (rounded(x), rounded(w)))(x, w)
    levels = [levels_reference(each.words, layout) for each in (a, b)]
    exact = levels[0] @ levels[1].T
    halves = np.asarray(a.level_sums)[:, None] / 2 + np.asarray(b.level_sums)[None, :] / 2 + 64 / 4
    units = np.asarray(a.unit)[:, None] * np.asarray(b.unit)[None, :]
    dense = [(each + 0.5) * np.asarray(q.unit)[:, None] for each, q in zip(levels, (a, b), strict=True)]
    np.testing.assert_allclose(units * (exact + halves), dense[0] @ dense[1].T, rtol=1e-5)
    error = np.abs(units * (exact + halves) - np.asarray(x @ w.T))
    assert np.sqrt(np.mean(error**2)) < 0.2 * np.std(np.asarray(x @ w.T))
    assert not np.allclose(units * exact, dense[0] @ dense[1].T, rtol=1e-2)


def test_the_rotation_undoes_itself_and_is_its_own_gradient(light_jit):
    x, weight = normal((3, 64)), normal((3, 64), seed=1)

    def twice(x):
        once = block_hadamard(x, 16, implementation="interpret")
        return block_hadamard(once, 16, implementation="interpret"), jnp.sum(once * weight)

    back = light_jit(lambda x: twice(x)[0])(x)
    np.testing.assert_allclose(back, x, atol=1e-6)
    gradient = light_jit(jax.grad(lambda x: twice(x)[1]))(x)
    np.testing.assert_allclose(gradient, block_hadamard_reference(weight, 16), atol=1e-6)


def test_one_bit_is_the_sign_and_zero_rows_are_finite():
    layout = HadamardLayout(bits=1, block=32, tile=32, clip=0.8)
    x = jnp.concatenate([normal((2, 32)), jnp.zeros((1, 32))])
    got = hadamard_quantize(x, layout)
    levels = levels_reference(got.words, layout)
    np.testing.assert_array_equal(levels[:2], np.where(block_hadamard_reference(x[:2], 32) < 0, -1, 0))
    np.testing.assert_array_equal(levels[2], 0)
    assert float(got.unit[2]) == pytest.approx(2e-8)


def test_under_vmap(light_jit):
    layout, x = HadamardLayout(bits=4, block=32, tile=32, clip=2.0), normal((3, 2, 64))

    def both(x):
        return jax.vmap(lambda x: hadamard_quantize(x, layout, implementation="interpret"))(x), hadamard_quantize(
            x, layout
        )

    one, each = light_jit(both)(x)
    np.testing.assert_array_equal(one.words, each.words)


def test_signs_are_those_of_the_definition():
    for block in (16, 256):
        np.testing.assert_allclose(
            sylvester(block) / np.sqrt(block), block_hadamard_reference(np.eye(block), block), rtol=1e-15
        )


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(bits=3), "bits must be 1, 2, 4 or 8, got 3"),
        (dict(block=48), r"block must be one of \(16, .*256\), got 48"),
        (dict(tile=16), "tile must be 32, 64, 128 or 256, got 16"),
        (dict(clip=0.0), "clip must be above 0, got 0.0"),
    ],
)
def test_layouts_that_do_not_fit(changed, what):
    with pytest.raises(ValueError, match=f"hadamard: {what}"):
        HadamardLayout(**(dict(bits=4, block=64, tile=64, clip=2.0) | changed))


def test_arrays_and_sizes_that_do_not_fit():
    layout = HadamardLayout(bits=4, block=64, tile=128, clip=2.0)
    with pytest.raises(ValueError, match=r"whole blocks of 64 and tiles of 128, got shape \(2, 192\)"):
        hadamard_quantize(jnp.zeros((2, 192)), layout)
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32, got int32"):
        hadamard_quantize(jnp.zeros((2, 128), jnp.int32), layout)
    with pytest.raises(ValueError, match=r"whole blocks of 64, got shape \(2, 96\)"):
        block_hadamard(jnp.zeros((2, 96)), 64)
    with pytest.raises(ValueError, match="block must be one of"):
        block_hadamard(jnp.zeros((2, 96)), 3)
    with pytest.raises(ValueError, match=r"HadamardConfig.rows must be a power of two, got 3"):
        HadamardConfig(values=256, rows=3, warps=4, stages=2)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x = spec.arguments()[0]
        config = choose_config(spec.m, spec.channels, spec.layout, spec.block, jnp.dtype(spec.dtype))
        if spec.layout is None:
            out = jax.eval_shape(lambda x, block=spec.block: block_hadamard(x, block), x)
            assert out.shape == x.shape and out.dtype == x.dtype
        else:
            assert config.rows * config.chunk(spec.layout, spec.channels) // spec.block >= 16
            words = jax.eval_shape(lambda x, lay=spec.layout: hadamard_quantize(x, lay), x).words
            assert words.shape == (spec.m, spec.channels * spec.layout.bits // 32)
