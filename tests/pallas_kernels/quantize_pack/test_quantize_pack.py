"""Rounding and packing in the interpreter against float64 and the plain formula; the way back; refusals."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import QSGD, MinMax
from compressjax.kvcache.packed import pack_groups, unpack_groups
from compressjax.ops import on_gpu
from pallas_kernels.backends.random_bits import centred_uniforms, threefry
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.quantize_pack import Packed, PackLayout, quantize_pack, unpack_dequantize
from pallas_kernels.quantize_pack.reference import (
    codes_reference,
    in_blocks,
    positions_reference,
    statistics_reference,
)
from pallas_kernels.quantize_pack.specs import SPECS

pytestmark = pytest.mark.kernels

KEY = jax.random.PRNGKey(3)


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


CASES = {
    "flat": ((610,), dict(bits=4, block=128, tile=64), "float32", True),
    "flat-norm": ((2, 150), dict(bits=8, block=64, tile=32, kind="norm"), "float32", True),
    "rows": ((2, 64, 20), dict(bits=8, block=32, tile=64, along="rows", scale_dtype="float16"), "bfloat16", False),
    "rows-short": ((1, 128, 8), dict(bits=4, block=8, tile=128, along="rows", kind="absmax"), "float32", True),
    "cols": ((2, 32, 24), dict(bits=2, block=8, tile=32, along="cols", scale_dtype="float16"), "float16", False),
}


@pytest.mark.parametrize("name", CASES)
def test_words_and_values(light_jit, name):
    shape, fields, dtype, random = CASES[name]
    layout, x = PackLayout(**fields), normal(shape, dtype)
    key = KEY if random else None
    config = BlockConfig(values=512, warps=4)  # several programs, the last of a flat array in part beyond the end

    def both(x):
        packed = [quantize_pack(x, layout, key=key, implementation=i, config=config) for i in ("interpret", "xla")]
        return packed, [
            unpack_dequantize(packed[0], x.shape, layout, dtype=x.dtype, implementation=i, config=config)
            for i in ("interpret", "xla")
        ]

    (ours, formula), (back, same) = light_jit(both)(x)
    np.testing.assert_array_equal(ours.words, formula.words)
    scale, low = statistics_reference(x, layout)
    half = float(jnp.finfo(layout.scale_dtype).eps)  # one rounding to the kept dtype, and a few in float32
    np.testing.assert_allclose(np.asarray(ours.scale, np.float64), scale, rtol=half + 1e-6)
    if low is not None:
        np.testing.assert_allclose(np.asarray(ours.low, np.float64), low, rtol=half)
    codes = in_blocks(codes_reference(ours, shape, layout), layout)
    position = positions_reference(x, ours, layout)
    least, largest = layout.extremes
    assert codes.min() >= least and codes.max() <= largest
    inside = np.clip(position, least, largest)
    assert np.max(np.abs(codes - inside)) < (1.0 if random else 0.5 + 1e-4)
    assert not random or np.mean(np.abs(codes - inside) > 0.5) > 0.1, "nothing was rounded to the farther neighbour"
    np.testing.assert_allclose(
        np.asarray(back, np.float64), np.asarray(same, np.float64), rtol=float(jnp.finfo(dtype).eps), atol=1e-6
    )
    unit = np.asarray(ours.scale, np.float64)[..., None] / (layout.steps if layout.kind == "norm" else 1)
    first = 0.0 if ours.low is None else np.asarray(ours.low, np.float64)[..., None]
    wanted = first + unit * (codes - layout.zero)
    got = in_blocks(back, layout)
    whole = slice(None, -1) if layout.along == "flat" else slice(None)  # the reference fills a block by its last value
    np.testing.assert_allclose(got[whole], wanted[whole], rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize("kind", ["norm", "absmax", "minmax"])
@pytest.mark.parametrize("implementation", ["interpret", "xla"])
def test_what_is_not_a_number_stays_so_and_stays_in_its_block(light_jit, kind, implementation):
    # A word holds fields of all four blocks of its column.
    layout, x = PackLayout(bits=4, block=64, tile=256, kind=kind, along="rows"), normal((256, 4))

    @light_jit
    def there_and_back(x):
        packed = quantize_pack(x, layout, implementation=implementation)
        return unpack_dequantize(packed, x.shape, layout, dtype=x.dtype, implementation=implementation)

    good, bad = (np.array(there_and_back(a)).reshape(4, 64, 4) for a in (x, x.at[70, 2].set(jnp.nan)))
    assert np.all(np.isnan(bad[1, :, 2])) and not np.any(np.isnan(good))
    bad[1, :, 2] = good[1, :, 2]
    np.testing.assert_array_equal(bad, good)


def test_constant_and_tiny_blocks_read_back_as_their_low_end(light_jit):
    x = jnp.concatenate([jnp.full(64, 3.5), jnp.zeros(64), jnp.linspace(0, 1e-39, 64)])
    for kind, third in (("minmax", 1e-39), ("absmax", 1e-39)):
        layout = PackLayout(bits=8, block=64, tile=64, kind=kind)

        def there_and_back(x, layout=layout):
            packed = quantize_pack(x, layout, key=KEY, implementation="interpret")
            return unpack_dequantize(packed, x.shape, layout, implementation="interpret")

        back = light_jit(there_and_back)(x)
        np.testing.assert_allclose(back[:64], 3.5, rtol=1e-6 if kind == "minmax" else 1e-2)
        np.testing.assert_array_equal(back[64:128], 0)
        np.testing.assert_allclose(back[128:], 0, atol=third)


def test_rounding_at_random_has_the_value_as_its_mean():
    """1000 keys: five standard errors of a coin that is thrown once a key."""
    layout = PackLayout(bits=4, block=32, tile=32)
    x = normal((32,))
    keys = jax.random.split(KEY, 1000)

    @jax.jit
    @jax.vmap
    def values(key):
        return unpack_dequantize(quantize_pack(x, layout, key=key), x.shape, layout)

    unit = float(x.max() - x.min()) / 15
    assert np.max(np.abs(np.mean(values(keys), axis=0) - x)) < 5 * 0.5 * unit / np.sqrt(1000)


def test_random_words_are_those_of_threefry():
    key, place = jnp.asarray([7, 9], jnp.uint32), jnp.arange(5, dtype=jnp.uint32)
    ours = jnp.concatenate(threefry((key[0], key[1]), place, 3))
    theirs = jax.extend.random.threefry_2x32(key, jnp.concatenate([place, jnp.full(5, 3, jnp.uint32)]))
    np.testing.assert_array_equal(ours, theirs)
    many = jnp.stack(centred_uniforms((key[0], key[1]), jnp.arange(4096, dtype=jnp.uint32), 8))
    assert np.unique(many).size > 0.3 * many.size and float(jnp.abs(many).max()) < 0.5
    assert abs(float(many.mean())) < 5 / np.sqrt(12 * many.size)


def test_under_vmap(light_jit):
    layout, x = PackLayout(bits=8, block=32, tile=32), normal((3, 64))
    one = light_jit(jax.vmap(lambda x: quantize_pack(x, layout, implementation="interpret")))(x)
    each = [quantize_pack(row, layout) for row in x]
    for got, wanted in zip(one, zip(*each, strict=True), strict=True):
        np.testing.assert_array_equal(got, jnp.stack(wanted))


@pytest.mark.parametrize("axis, along", [("channel", "rows"), ("token", "cols")])
def test_caches_are_read_alike(axis, along):
    """Values of ``kvcache.packed``, whose divisions round otherwise: never more than a step apart."""
    x = normal((1, 2, 64, 32), jnp.bfloat16)
    layout = PackLayout(bits=4, block=32, tile=64, along=along, scale_dtype="float16")
    ours = quantize_pack(x, layout)
    theirs = pack_groups(x, axis, bits=4, group=32)
    assert ours.words.shape == theirs.codes.shape and ours.scale.shape == theirs.scale.shape
    a, b = unpack_dequantize(ours, x.shape, layout), unpack_groups(theirs, axis, bits=4)
    step = float(jnp.max(theirs.scale.astype(jnp.float32)))
    assert float(jnp.max(jnp.abs(a - b))) < 1.01 * step
    assert float(jnp.mean((jnp.abs(a - b) < 0.01 * step).astype(jnp.float32))) > 0.99


@pytest.mark.parametrize("compressor", [MinMax(bits=4, bucket=64), QSGD(bits=8, bucket=64)])
def test_compressors_of_gradients_take_the_kernel(monkeypatch, compressor):
    """Where a GPU is the default device; the kernel is stood in for by its formula here."""
    x = normal((300,))
    message = compressor.encode(x, KEY)
    decoded = compressor.decode(message, 300, KEY)
    calls = []

    def stand_in(function):
        def call(*args, implementation, **kwargs):
            assert implementation == "triton"
            calls.append(function.__name__)
            return function(*args, implementation="xla", **kwargs)

        return call

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    for function in (quantize_pack, unpack_dequantize):
        monkeypatch.setattr(f"pallas_kernels.quantize_pack.{function.__name__}", stand_in(function))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    ours = compressor.encode(x, KEY)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), message)
    np.testing.assert_allclose(ours.scales, message.scales, rtol=1e-5)
    np.testing.assert_allclose(compressor.decode(message, 300, KEY), decoded, rtol=1e-6, atol=1e-6)
    step = np.repeat(np.asarray(message.scales[:, -1]), 64)[:300] / (127 if isinstance(compressor, QSGD) else 1)
    np.testing.assert_array_less(np.abs(compressor.decode(ours, 300, KEY) - x), 1.01 * step)
    assert calls == ["quantize_pack", "unpack_dequantize", "unpack_dequantize"]
    odd = MinMax(bits=3, bucket=64)
    odd.decode(odd.encode(x, KEY), 300, KEY)
    assert len(calls) == 3, "3 bits have no kernel"


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(bits=3), "bits must be 2, 4 or 8, got 3"),
        (dict(block=96), r"block must be a power of two in 8\.\.8192, got 96"),
        (dict(block=32), "whole tiles of 64, got 32"),
        (dict(along="rows", block=128), "must divide the tile of 64, got 128"),
        (dict(kind="median"), "kind must be one of .*, got 'median'"),
        (dict(along="tokens"), "along must be one of .*, got 'tokens'"),
        (dict(scale_dtype="int8"), "scale_dtype must be a 16- or 32-bit float, got 'int8'"),
    ],
)
def test_layouts_that_do_not_fit(changed, what):
    with pytest.raises(ValueError, match=f"quantize_pack: .*{what}"):
        PackLayout(**(dict(bits=4, block=64, tile=64) | changed))


def test_arrays_that_do_not_fit():
    layout = PackLayout(bits=4, block=64, tile=64, along="cols")
    with pytest.raises(ValueError, match=r"whole tiles of 64 rows and blocks of 64 columns, got shape \(64, 48\)"):
        quantize_pack(jnp.zeros((64, 48)), layout)
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32, got int32"):
        quantize_pack(jnp.zeros((64, 64), jnp.int32), layout)
    with pytest.raises(ValueError, match="key must be one Threefry key"):
        quantize_pack(jnp.zeros((64, 64)), layout, key=jnp.zeros(4, jnp.uint32))
    packed = quantize_pack(jnp.zeros((64, 64)), layout)
    with pytest.raises(ValueError, match=r"words must be uint32 of shape \(8, 64\), got float32"):
        unpack_dequantize(packed._replace(words=jnp.zeros((8, 64))), (64, 64), layout)
    with pytest.raises(ValueError, match=r"scale must be float32 of shape \(64, 1\)"):
        unpack_dequantize(packed._replace(scale=jnp.zeros((64, 2))), (64, 64), layout)
    with pytest.raises(ValueError, match="low goes with kind 'minmax'"):
        unpack_dequantize(Packed(packed.words, packed.scale, None), (64, 64), layout)
    with pytest.raises(TypeError, match="dtype must be bfloat16, float16 or float32, got int8"):
        unpack_dequantize(packed, (64, 64), layout, dtype=jnp.int8)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x = spec.arguments()[0]
        packed = jax.eval_shape(lambda x, lay=spec.layout: quantize_pack(x, lay), x)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), packed) == jax.tree.map(
            lambda a: (a.shape, a.dtype), spec.packed()
        )
