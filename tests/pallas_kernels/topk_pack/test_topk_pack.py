"""The choice of the largest entries in the interpreter against a stable sort, and reached by the compressor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import BlockTopK
from compressjax.ops import on_gpu
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.topk_pack import TopKLayout, topk_pack
from pallas_kernels.topk_pack.reference import topk_pack_reference
from pallas_kernels.topk_pack.specs import SPECS

pytestmark = pytest.mark.kernels


def rounded(size, dtype=jnp.float32):
    """Many equal magnitudes."""
    return jnp.asarray(np.random.default_rng(0).normal(size=size).round(1), dtype)


CASES = {  # size, chunk, k, residual, dtype
    "whole": (1024, 64, 5, True, "float32"),
    "beyond-the-end": (333, 50, 7, True, "bfloat16"),
    "everything": (100, 128, 128, False, "float16"),
    "one": (700, 256, 1, False, "float32"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_largest_and_of_equal_ones_the_first(light_jit, name):
    size, chunk, k, residual, dtype = CASES[name]
    layout, x = TopKLayout(chunk=chunk, k=k, residual=residual), rounded(size, dtype)
    config = BlockConfig(values=256, warps=4)

    def both(x):
        return [topk_pack(x, layout, implementation=i, config=config) for i in ("interpret", "xla")]

    wanted = topk_pack_reference(x, layout)
    for got in light_jit(both)(x):
        assert got.values.dtype == x.dtype and got.places.dtype == jnp.uint16
        assert (got.residual is None) != residual
        for a, b in zip(got, wanted, strict=True):
            if a is not None:
                np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


def test_magnitudes_that_are_hard_to_tell_apart(light_jit):
    """Neighbours in the last bit, subnormal numbers, zeros of both signs, infinities and NaN."""
    last = np.nextafter(np.float32(1), np.float32(2))
    row = [1.0, -last, 0.0, -0.0, 1e-40, -2e-40, np.inf, -np.inf, np.nan, 1.0, last, 3e-5, -3e-5, 2.0, 0.0, 0.0]
    x = jnp.asarray(row, jnp.float32)
    for k, places in ((1, [8]), (3, [6, 7, 8]), (6, [1, 6, 7, 8, 10, 13]), (7, [0, 1, 6, 7, 8, 10, 13])):
        layout = TopKLayout(chunk=16, k=k)
        got = light_jit(lambda x, lay=layout: topk_pack(x, lay, implementation="interpret"))(x)
        np.testing.assert_array_equal(got.places[0], places)


def test_half_precision_is_told_apart_to_its_last_bit(light_jit):
    for dtype in (jnp.float16, jnp.bfloat16):
        bits = jnp.arange(1, 65, dtype=jnp.uint16)  # subnormal numbers, ascending
        x = jax.lax.bitcast_convert_type(bits, dtype)
        layout = TopKLayout(chunk=64, k=3)
        got = light_jit(lambda x, lay=layout: topk_pack(x, lay, implementation="interpret"))(x)
        if dtype == jnp.float16:  # those of bfloat16 are subnormal in float32 too, which devices may flush
            np.testing.assert_array_equal(got.places[0], [61, 62, 63])
        assert bool(jnp.all(jnp.diff(got.places[0].astype(jnp.int32)) > 0))


def test_under_vmap(light_jit):
    layout, x = TopKLayout(chunk=32, k=4), rounded(192).reshape(2, 96)

    def both(x):
        return [jax.vmap(lambda x, i=i: topk_pack(x, layout, implementation=i))(x) for i in ("interpret", "xla")]

    ours, formula = light_jit(both)(x)
    jax.tree.map(np.testing.assert_array_equal, ours, formula)


def test_the_compressor_takes_the_kernel(monkeypatch):
    """Where a GPU is the default device; the kernel is stood in for by its formula here. The vector is the same."""
    compressor, x, key = BlockTopK(density=0.1, chunk=64), rounded(300), jax.random.PRNGKey(0)
    message = compressor.encode(x, key)
    calls = []

    def stand_in(*args, implementation):
        assert implementation == "triton"
        calls.append(args[1])
        return topk_pack(*args, implementation="xla")

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.topk_pack.topk_pack", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    ours = compressor.encode(x, key)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(lambda a: (a.shape, a.dtype), message)
    np.testing.assert_array_equal(compressor.decode(ours, 300, key), compressor.decode(message, 300, key))
    np.testing.assert_array_equal(jnp.sort(message.places, axis=1), ours.places)
    assert calls == [TopKLayout(chunk=64, k=6)]
    BlockTopK(chunk=10_000).encode(jnp.ones(20_000), key)
    assert len(calls) == 1, "such long chunks have no kernel"


@pytest.mark.parametrize(
    "changed, what",
    [(dict(chunk=10_000), r"chunk must be in 1\.\.8192, got 10000"), (dict(k=65), r"k must be in 1\.\.64, got 65")],
)
def test_layouts_that_do_not_fit(changed, what):
    with pytest.raises(ValueError, match=f"topk_pack: {what}"):
        TopKLayout(**(dict(chunk=64, k=3) | changed))


def test_vectors_that_do_not_fit():
    with pytest.raises(ValueError, match=r"x must be a vector .* got shape \(2, 3\)"):
        topk_pack(jnp.zeros((2, 3)), TopKLayout(chunk=4, k=1))
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32, got int32"):
        topk_pack(jnp.zeros(3, jnp.int32), TopKLayout(chunk=4, k=1))


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        out = jax.eval_shape(lambda x, lay=spec.layout: topk_pack(x, lay), *spec.arguments())
        assert out.values.shape == (spec.layout.chunks(spec.size), spec.layout.k)
