"""The flush in the interpreter: the library's own bits, float64, nothing else of the cache touched, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.kvcache.packed import pack_groups, tile_of
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.kv_append import AppendLayout, kv_append
from pallas_kernels.kv_append.config import choose_config, columns_of
from pallas_kernels.kv_append.reference import codes_reference, in_groups, positions_reference, statistics_reference
from pallas_kernels.kv_append.specs import SPECS
from pallas_kernels.kv_append.xla import kv_append_xla
from pallas_kernels.kv_attention import Codes, Side

pytestmark = pytest.mark.kernels


def layout(tokens, width, bits, group, axis: Any = "channel", *, sym=False, tile=None):
    side = Side(width=width, bits=bits, group=group, axis=axis, sym=sym)
    return AppendLayout(tokens=tokens, tile=tile or tile_of(tokens), side=side)


def ring(lay: AppendLayout, dtype="float32", seed=0, batch=2, heads=2):
    """Values with a constant group, one that nothing is kept of, and a token out of all bounds that is not kept."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, heads, lay.tokens, lay.side.width)) * np.exp(rng.normal(size=lay.side.width))
    x[0, 0, :, : lay.side.group] = 0.75
    x[0, :, 5] = 1e4
    keep = rng.random((batch, lay.tokens)) < 0.8
    keep[0, 5], keep[-1, : min(lay.side.group, lay.tokens // 2)] = False, False
    return jnp.asarray(x, dtype), jnp.asarray(keep)


def cache(lay: AppendLayout, dtype="float16", blocks=3, batch=2, heads=2) -> Codes:
    """Blocks full of ones."""
    words, scales = lay.block_shapes()
    lead = (blocks, batch, heads)
    scale = jnp.ones((*lead, *scales), dtype)
    return Codes(jnp.ones((*lead, *words), jnp.uint32), scale, None if lay.side.sym else scale)


CASES = {  # layout, values of a program, dtypes of the ring and of scales, whether some tokens are not kept
    "kivi-keys": (layout(64, 48, 4, 32), 1024, "bfloat16", "float16", True),
    "kivi-values": (layout(32, 48, 4, 16, "token"), 1024, "bfloat16", "float16", True),
    "kv4-keys": (layout(64, 32, 4, 64), 4096, "float32", "float16", False),
    "one-scale": (layout(32, 40, 4, 40, "token"), 4096, "float16", "bfloat16", True),
    "symmetric": (layout(32, 32, 8, 16, sym=True), 512, "float32", "float16", True),
    "symmetric-values": (layout(32, 24, 4, 8, "token", sym=True), 512, "float32", "float16", False),
    "three-planes": (layout(32, 16, 7, 16), 512, "float32", "float16", True),
    "groups-in-runs": (layout(128, 16, 8, 8), 2048, "float32", "float16", True),
    "groups-over-tiles": (layout(96, 16, 8, 48), 2048, "float32", "float16", True),
}


SLOW = ("symmetric-values", "groups-over-tiles")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_kernel_and_formula_give_the_librarys_bits(light_jit, name):
    """And leave the other blocks alone; positions beyond the end are the last, as in the formula."""
    lay, values, dtype, scale_dtype, masked = CASES[name]
    (x, kept), held = ring(lay, dtype), cache(lay, scale_dtype)
    keep = kept if masked else None
    config = BlockConfig(values=values, warps=4)

    def all_of(held, x, keep, at):
        flags = None if keep is None else keep.astype(jnp.uint8)
        kernel = kv_append(held, x, at, lay, keep=flags, implementation="interpret", config=config)
        formula = kv_append(held, x, at, lay, keep=flags, implementation="xla")
        side = lay.side
        options: dict[str, Any] = dict(bits=side.bits, group=side.group, sym=side.sym, dtype=scale_dtype)
        return kernel, formula, pack_groups(x, side.axis, keep=keep, **options)

    kernel, formula, wanted = light_jit(all_of)(held, x, keep, jnp.int32(1))
    for got in (kernel, formula):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(a[1], b)
            assert a.dtype == b.dtype and np.all(np.asarray(a)[[0, 2]] == 1)


def test_rounding_is_that_of_float64():
    lay = layout(64, 48, 4, 16, "token")
    x, keep = ring(lay)
    flags = keep.astype(jnp.uint8)
    got = jax.jit(lambda held, x: kv_append_xla(held, x, jnp.int32(0), flags, lay))(cache(lay), x)
    scale, low = statistics_reference(x, keep, lay)
    np.testing.assert_allclose(got.scale[0], scale, rtol=1.5 * 2.0**-11)
    np.testing.assert_allclose(got.low[0], low, rtol=1.01 * 2.0**-11, atol=2.0**-25)
    codes = in_groups(codes_reference(got.codes[0], lay), lay)
    off = np.abs(codes - positions_reference(x, got.scale[0], got.low[0], lay))
    assert off.max() <= 0.5 + 1e-5


def test_over_layers_under_vmap(light_jit):
    """All layers at once, into one place, as a cache is flushed; and past both ends."""
    lay = layout(32, 32, 4, 32)
    rings = jnp.stack([ring(lay, seed=s)[0] for s in range(2)])
    held = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), cache(lay))

    def both(held, rings, at):
        def flush(implementation):
            return jax.vmap(lambda h, x: kv_append(h, x, at, lay, implementation=implementation))(held, rings)

        return flush("interpret"), flush("xla")

    run = light_jit(both)
    for at in (1, 7, -2):
        ours, formula = run(held, rings, jnp.int32(at))
        jax.tree.map(np.testing.assert_array_equal, ours, formula)
        place = min(max(at, 0), 2)
        others = [c for c in range(3) if c != place]
        np.testing.assert_array_equal(ours.codes[:, others], held.codes[:, others])
        assert np.all(np.any(np.asarray(ours.codes[:, place]) > 2, axis=(1, 2, 3, 4)))


def test_a_group_with_nan_is_nan_and_no_other(light_jit):
    """Where a maximum of floats passes over NaN, as on a GPU and in XLA's own on a CPU, it would come out finite."""
    lay = layout(32, 32, 4, 32)
    x = ring(lay)[0].at[1, 0, 7, 3].set(jnp.nan).at[0, 1, 2, 9].set(jnp.inf)

    def all_of(x):
        ways = [kv_append(cache(lay), x, jnp.int32(0), lay, implementation=i) for i in ("interpret", "xla")]
        return *ways, pack_groups(x, "channel", bits=4, group=32)

    kernel, formula, wanted = light_jit(all_of)(x)
    for got in (kernel, formula):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[0], tuple(got)), tuple(wanted))
    lost = np.isnan(np.asarray(kernel.scale[0], np.float32))
    assert np.argwhere(lost).tolist() == [[1, 0, 0, 3]]
    assert not np.any(codes_reference(kernel.codes[0], lay)[1, 0, :, 3])


REFUSED = {
    "bits": (lambda: layout(64, 32, 9, 32), r"bits must be in 1\.\.8, got 9"),
    "tile": (lambda: layout(96, 32, 2, 32, tile=64), "tokens must be a positive multiple of tile=64, got 96"),
    "sign": (lambda: layout(64, 32, 1, 32, sym=True), "codes around a middle take at least 2 bits, got 1"),
    "tokens": (lambda: layout(64, 32, 2, 48), "group must divide the 64 tokens of a block, got 48"),
    "large": (lambda: layout(64, 2048, 2, 2048, "token"), "group must be at most 1024, got 2048"),
    "cut": (lambda: layout(256 * 3, 32, 2, 12), "groups of 12 tokens cut runs of 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_do_not_fit(name):
    make, what = REFUSED[name]
    with pytest.raises(ValueError, match=f"kv_append: {what}"):
        make()


def test_arrays_that_do_not_fit():
    lay = layout(64, 32, 2, 32)
    (x, keep), held = ring(lay), cache(lay)

    def refused(kind, what, **changed):
        call: dict[str, Any] = dict(held=held, x=x, at=jnp.int32(0), layout=lay) | changed
        with pytest.raises(kind, match=f"kv_append: {what}"):
            kv_append(**call)

    refused(TypeError, "x must be bfloat16, float16 or float32, got int32", x=x.astype(jnp.int32))
    refused(ValueError, r"x must be \[B, K, 64, 32\], got shape \(2, 2, 32, 32\)", x=x[:, :, :32])
    refused(TypeError, "codes must be uint32 words", held=held._replace(codes=held.codes.astype(jnp.int32)))
    refused(
        ValueError,
        r"codes must have shape \(3, 2, 2, 4, 32\), got \(3, 2, 2, 3, 32\)",
        held=held._replace(codes=held.codes[:, :, :, 1:]),
    )
    refused(ValueError, "the cache must have room", held=jax.tree.map(lambda a: a[:0], held))
    refused(ValueError, "sym=False does not go with low missing", held=held._replace(low=None))
    refused(TypeError, "scale and low must both be", held=held._replace(low=held.low.astype(jnp.bfloat16)))
    refused(ValueError, r"at must be an int32 scalar, got int32 \[1\]", at=jnp.zeros(1, jnp.int32))
    refused(TypeError, "keep must be uint8, got bool", keep=keep)
    refused(ValueError, r"keep must have shape \(2, 64\), got \(1, 64\)", keep=keep[:1].astype(jnp.uint8))
    refused(ValueError, "implementation='triton' cannot run: it needs an NVIDIA GPU", implementation="triton")


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        held, x, at, keep = spec.arguments()

        def one(held, x, at, keep, lay=spec.layout):
            return jax.vmap(lambda held, x: kv_append(held, x, at, lay, keep=keep))(held, x)

        out = jax.eval_shape(one, held, x, at, keep)
        assert out.codes.shape == held.codes.shape
        config = choose_config(x.shape[1:], x.dtype, spec.layout)
        many, part = columns_of(spec.layout, config.values)
        assert many * part * spec.layout.span <= config.values or spec.layout.side.group > many
        assert spec.written * 32 == sum(a.size * a.dtype.itemsize for a in held if a is not None)
