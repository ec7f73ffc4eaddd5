"""Attention to shared latents in the interpreter against float64, its refusals and its sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_attention import Codes, Side
from pallas_kernels.kv_attention.layout import UNSEEN
from pallas_kernels.mla_attention import MLALayout, mla_attention
from pallas_kernels.mla_attention.config import MLAConfig, choose_config, partial_bytes
from pallas_kernels.mla_attention.layout import blocks_of
from pallas_kernels.mla_attention.reading import segments
from pallas_kernels.mla_attention.reference import mla_attention_reference
from pallas_kernels.mla_attention.specs import SPECS

pytestmark = pytest.mark.kernels


def packed(tokens, tile, rank, rope, bits, group, axis: Any = "channel", *, sym=False):
    side = Side(width=rank + rope, bits=bits, group=group, axis=axis, sym=sym)
    return MLALayout(rank=rank, rope=rope, tokens=tokens, side=side, tile=tile)


def plain(tokens, rank, rope):
    return MLALayout(rank=rank, rope=rope, tokens=tokens)


def random_latents(lay: MLALayout, blocks, batch, dtype="float16", seed=0) -> Any:
    """Floats, or codes that use all bits."""
    rng, lead = np.random.default_rng(seed), (blocks, batch)
    if lay.side is None:
        return jnp.asarray(rng.normal(size=(*lead, lay.tokens, lay.width)), dtype)
    words = lay.packing.tiles * lay.packing.words
    codes = jnp.asarray(rng.integers(0, 2**32, (*lead, words, lay.width), np.uint32))
    shape = (*lead, *lay.scale_shape)
    scale = jnp.asarray(rng.uniform(0.5, 1.5, shape) * 2 / 2**lay.side.bits, "float16")
    return Codes(codes, scale, None if lay.side.sym else jnp.asarray(rng.normal(size=shape) - 1, "float16"))


def random_queries(lay: MLALayout, batch, heads, dtype):
    draw = np.random.default_rng(5).normal(size=(batch, heads, lay.width)) * lay.width**-0.5
    return jnp.asarray(draw, dtype)


def edges(total, batch):
    """Rows that begin late and end early, each in its own way."""
    return jnp.asarray([3, total // 3][:batch], jnp.int32), jnp.asarray([total - 5, total - 33][:batch], jnp.int32)


CASES = {  # layout, blocks, batch, heads, heads of a program, rows, segment, splits, masked, dtype
    "whole": (plain(128, 64, 16), 1, 2, 17, 16, 32, 64, 1, False, "bfloat16"),
    "odd": (plain(45, 40, 12), 3, 2, 5, 16, 16, 32, 3, True, "float32"),
    "no-positions": (plain(64, 16, 0), 2, 1, 1, 16, 64, 16, 1, False, "float16"),
    "by-channel": (packed(256, 256, 32, 16, 2, 32), 1, 2, 9, 16, 64, 32, 2, False, "float32"),
    "chunks": (packed(64, 64, 48, 16, 4, 16), 3, 2, 3, 16, 32, 16, 2, True, "bfloat16"),
    "by-token": (packed(32, 32, 64, 32, 8, 32, "token", sym=True), 2, 2, 20, 32, 32, 64, 1, True, "float16"),
    "one-scale": (packed(96, 32, 24, 8, 5, 32, "token"), 2, 2, 4, 16, 16, 16, 3, False, "float32"),
    "crossing": (packed(96, 32, 36, 12, 3, 24, "token"), 1, 1, 2, 16, 32, 32, 1, True, "float32"),
    "odd-groups": (packed(96, 32, 16, 4, 3, 48), 1, 1, 2, 16, 32, 16, 2, False, "float32"),
}


SLOW = ("crossing", "odd-groups", "one-scale")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES])
def test_kernel_and_formula_are_the_reference(light_jit, name):
    lay, blocks, batch, heads, many, rows, segment, splits, masked, dtype = CASES[name]
    latents, q = random_latents(lay, blocks, batch, dtype), random_queries(lay, batch, heads, dtype)
    start, stop = edges(blocks * lay.tokens, batch)
    flags = np.random.default_rng(7).random((blocks, batch, lay.tokens)) < 0.8
    seen = jnp.asarray(flags, jnp.uint8) if masked else None
    config = MLAConfig(heads=many, rows=rows, segment=segment, splits=splits, warps=4, stages=2)

    def both(q, latents, start, stop, seen):
        kernel = mla_attention(q, latents, start, stop, lay, seen=seen, implementation="interpret", config=config)
        return kernel, mla_attention(q, latents, start, stop, lay, seen=seen, implementation="xla")

    wanted = mla_attention_reference(q, latents, start, stop, seen, lay)
    for kind, got in zip(("kernel", "formula"), light_jit(both)(q, latents, start, stop, seen), strict=True):
        eps = 2e-6 if kind == "formula" or dtype == "float32" else 2 * float(jnp.finfo(dtype).eps)
        for a, b in zip(got[:3], wanted, strict=True):
            assert a.dtype == jnp.float32 and a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=eps * np.abs(b).max())


def test_one_token_is_its_own_average(light_jit):
    """Of 32 tokens one row sees the last and one sees none; what lies in tiles that are not read may be NaN."""
    lay = plain(32, 16, 16)
    latents, q = random_latents(lay, 3, 2, "float32"), random_queries(lay, 2, 2, "float32")
    start, stop = jnp.asarray([95, 40], jnp.int32), jnp.asarray([96, 40], jnp.int32)
    poisoned = latents.at[:2].set(jnp.nan)
    config = MLAConfig(heads=16, rows=32, segment=16, splits=2, warps=4, stages=1)

    def run(latents):
        return mla_attention(q, latents, start, stop, lay, implementation="interpret", config=config)

    got = light_jit(run)(poisoned)
    np.testing.assert_allclose(got.acc[0] / got.l[0][:, None], jnp.broadcast_to(latents[2, 0, -1, :16], (2, 16)))
    assert np.all(np.asarray(got.m[1]) == np.float32(UNSEEN)) and not np.any(got.acc[1]) and not np.any(got.l[1])


def test_over_layers_under_vmap_and_scan_with_gradients(light_jit):
    lay = packed(64, 64, 16, 16, 2, 32)
    latents = jax.tree.map(lambda *a: jnp.stack(a), *(random_latents(lay, 1, 1, seed=s) for s in range(2)))
    q, (start, stop) = random_queries(lay, 1, 2, "float32"), edges(64, 1)

    def attend(q, latents, implementation):
        return mla_attention(q, latents, start, stop, lay, implementation=implementation)

    def loss(q, latents, implementation):
        part = attend(q, latents, implementation)
        return jnp.sum((part.acc / part.l[..., None]) ** 2)

    def all_of(q, latents):
        one = jax.tree.map(lambda a: a[0], latents)
        mapped = [jax.vmap(lambda p, i=i: attend(q, p, i))(latents) for i in ("interpret", "xla")]
        scanned = jax.lax.scan(lambda c, p: (c, attend(q, p, "interpret")), 0, latents)[1]
        return *mapped, scanned, [jax.grad(loss)(q, one, i) for i in ("interpret", "xla")]

    mapped, formula, scanned, (ours, theirs) = light_jit(all_of)(q, latents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), mapped, formula)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), scanned, formula)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("rank, rope, most", [(512, 64, 256), (192, 32, 128), (40, 12, 32), (15, 0, 64), (300, 1, 64)])
def test_segments_cover_every_channel_once(rank, rope, most):
    cut = segments(plain(32, rank, rope), most)
    covered = [channel for each in cut for channel in range(each.first, each.first + each.real)]
    assert covered == list(range(rank + rope))
    assert all(16 <= each.count <= most and each.real <= each.count for each in cut)
    assert all(each.latent == (each.first < rank) and each.count & (each.count - 1) == 0 for each in cut)
    assert sum(each.count for each in cut) <= 1.25 * (rank + rope) + 32


REFUSED = {
    "rank": (lambda: plain(32, 0, 8), "rank must be at least 1, got 0"),
    "rope": (lambda: plain(32, 8, -1), "rope must be at least 0, got -1"),
    "bits": (lambda: packed(64, 64, 16, 16, 9, 32), r"bits must be in 1\.\.8, got 9"),
    "tile": (lambda: packed(96, 64, 16, 16, 2, 32), "tokens must be a multiple of tile=64, got 96"),
    "group": (lambda: packed(64, 64, 16, 16, 2, 48), "group must divide the 64 tokens of a block, got 48"),
    "width": (
        lambda: MLALayout(rank=16, rope=8, tokens=32, side=Side(width=32, bits=2, group=32, axis="channel")),
        r"side.width must be rank \+ rope = 24, got 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_do_not_fit(name):
    make, what = REFUSED[name]
    with pytest.raises(ValueError, match=f"mla_attention: {what}"):
        make()


def test_arrays_that_do_not_fit():
    lay, codes = plain(64, 16, 16), packed(64, 64, 16, 16, 2, 32)
    latents, words = random_latents(lay, 1, 1), random_latents(codes, 1, 1)
    q, (start, stop) = random_queries(lay, 1, 2, "float32"), edges(64, 1)

    def refused(kind, what, **changed):
        call: dict[str, Any] = dict(q=q, latents=latents, start=start, stop=stop, seen=None, layout=lay) | changed
        with pytest.raises(kind, match=f"mla_attention: {what}"):
            mla_attention(**call)

    refused(TypeError, "q must be bfloat16, float16 or float32, got int32", q=q.astype(jnp.int32))
    refused(ValueError, r"q must be \[B, H, r \+ p\] with r \+ p = 32, got shape \(1, 2, 16\)", q=q[..., :16])
    refused(ValueError, "latents are packed, which does not go with side=None", latents=words)
    refused(ValueError, "latents are floats, which does not go with side=Side", layout=codes)
    refused(TypeError, "latents must be bfloat16, float16 or float32, got int8", latents=latents.astype(jnp.int8))
    refused(ValueError, r"latents must have shape \(1, 1, 64, 32\), got \(1, 1, 63, 32\)", latents=latents[:, :, 1:])
    refused(ValueError, r"start must be int32 \[1\], got int32 \[2\]", start=jnp.zeros(2, jnp.int32))
    refused(TypeError, "seen must be uint8, got bool", seen=jnp.ones((1, 1, 64), bool))
    refused(ValueError, r"seen must have shape \(1, 1, 64\), got \(1, 1, 32\)", seen=jnp.ones((1, 1, 32), jnp.uint8))
    short = words._replace(codes=words.codes[:, :, 1:])
    refused(ValueError, r"codes must have shape \(1, 1, 4, 32\), got \(1, 1, 3, 32\)", latents=short, layout=codes)
    refused(ValueError, "sym=False does not go with low missing", latents=words._replace(low=None), layout=codes)
    refused(
        ValueError,
        r"scale must have shape \(1, 1, 2, 32\), got \(1, 1, 1, 32\)",
        latents=words._replace(scale=words.scale[:, :, 1:]),
        layout=codes,
    )
    refused(ValueError, "implementation='triton' cannot run: it needs an NVIDIA GPU", implementation="triton")


def test_sizes_that_do_not_fit():
    good = dict(heads=16, rows=32, segment=64, splits=1, warps=4, stages=1)
    for field, value, what in (
        ("heads", 24, "heads must be a power of two from 16, got 24"),
        ("rows", 8, "rows must be a power of two from 16, got 8"),
        ("splits", 0, "splits and stages must be at least 1, got 0, 1"),
        ("warps", 3, "warps must be 1, 2, 4 or 8, got 3"),
    ):
        with pytest.raises(ValueError, match=f"MLAConfig.{what}"):
            MLAConfig(**good | {field: value})
    lay = packed(32, 32, 16, 16, 2, 32)
    with pytest.raises(ValueError, match="config.rows must be at most the tile of 32, got 64"):
        choose_config(jnp.zeros((1, 1, 32)), 1, lay, MLAConfig(**good | {"rows": 64}))


def test_splits_fill_the_gpu_and_no_more():
    def queries(batch, heads) -> Any:
        return jax.ShapeDtypeStruct((batch, heads, 576), jnp.bfloat16)

    def config(batch, heads, tokens):
        return choose_config(queries(batch, heads), 1, plain(tokens, 512, 64))

    assert config(64, 128, 4096).splits == 1  # two programs a text
    few = config(1, 128, 8192).splits
    assert 16 < few < 66  # beyond, sums cost more than idle multiprocessors
    assert config(1, 16, 131072).splits == 132
    assert partial_bytes(queries(1, 128), plain(64, 512, 64), 2) == 2 * 128 * 514 * 8


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        q, latents, start, stop = spec.arguments()
        seen = spec.seen()
        out = jax.eval_shape(
            lambda q, p, a, b, s, lay=spec.layout: mla_attention(q, p, a, b, lay, seen=s), q, latents, start, stop, seen
        )
        assert out.acc.shape == (*q.shape[:2], spec.layout.rank)
        choose_config(q, blocks_of(latents), spec.layout).check(spec.layout)
