"""Attention to packed keys and values in the interpreter against float64, and its refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_attention import Codes, Fit, KVLayout, Side, kv_attention
from pallas_kernels.kv_attention.config import AttentionConfig, choose_config
from pallas_kernels.kv_attention.layout import UNSEEN
from pallas_kernels.kv_attention.reference import kv_attention_reference
from pallas_kernels.kv_attention.specs import SPECS

from .caches import random_past, random_queries

pytestmark = pytest.mark.kernels


def layout(tokens, tile, width, bits, group, *, k_axis="channel", v_bits=None, v_width=None, v_group=None, sym=False):
    key = Side(width=width, bits=bits, group=group, axis=k_axis, sym=sym)
    value = Side(width=v_width or width, bits=v_bits or bits, group=v_group or group, axis="token", sym=sym)
    return KVLayout(tokens=tokens, tile=tile, key=key, value=value)


CASES = {  # layout, blocks, batch, heads, G, ranks, rows, splits, masked, dtype
    "kivi-prompt": (layout(256, 256, 64, 2, 32), 1, 2, 2, 3, (0, 0), 64, 1, False, "float32"),
    "kivi-chunks": (layout(64, 64, 32, 4, 32), 5, 2, 1, 4, (0, 0), 32, 2, True, "bfloat16"),
    "gear-chunks": (layout(64, 64, 128, 2, 64), 3, 1, 2, 1, (2, 3), 64, 3, False, "float32"),
    "per-token": (layout(32, 32, 64, 8, 64, k_axis="token", sym=True), 2, 2, 1, 17, (0, 0), 32, 1, True, "float16"),
    "odd-widths": (
        layout(96, 32, 24, 8, 48, v_bits=3, v_width=40, v_group=20),
        2,
        2,
        1,
        5,
        (3, 0),
        32,
        3,
        True,
        "float32",
    ),
    "one-scale": (layout(128, 128, 80, 5, 128, v_group=80), 1, 2, 1, 2, (0, 1), 32, 1, False, "bfloat16"),
}


def edges(total, batch):
    """Rows that begin late and end early, each in its own way."""
    return jnp.asarray([3, total // 3][:batch], jnp.int32), jnp.asarray([total - 5, total - 33][:batch], jnp.int32)


@pytest.mark.parametrize("name", CASES)
def test_kernel_and_formula_are_the_reference(light_jit, name):
    lay, blocks, batch, heads, groups, ranks, rows, splits, masked, dtype = CASES[name]
    past, q = random_past(lay, blocks, batch, heads, ranks), random_queries(lay, batch, heads, groups, dtype)
    start, stop = edges(blocks * lay.tokens, batch)
    flags = np.random.default_rng(7).random((blocks, batch, lay.tokens)) < 0.8
    seen = jnp.asarray(flags, jnp.uint8) if masked else None
    config = AttentionConfig(rows=rows, splits=splits, warps=4, stages=2)

    bias = jnp.asarray(np.random.default_rng(8).normal(size=(blocks, batch, heads, groups, lay.tokens)), jnp.float32)
    options: dict[str, Any] = dict(config=config, keep_scores=True) if masked else dict(config=config)

    def both(q, past, start, stop, seen, bias):
        return [
            kv_attention(q, past, start, stop, lay, seen=seen, bias=bias, implementation=i, **options)
            for i in ("interpret", "xla")
        ]

    bias = bias if masked else None
    *wanted, scores = kv_attention_reference(q, past, start, stop, seen, lay, bias)
    for kind, got in zip(("kernel", "formula"), light_jit(both)(q, past, start, stop, seen, bias), strict=True):
        eps = 2e-6 if kind == "formula" or dtype == "float32" else 2 * float(jnp.finfo(dtype).eps)
        # Scores of a 16-bit product are off by that much of what they are sums of, and weights by as much.
        for a, b in zip(got[:3], wanted, strict=True):
            assert a.dtype == jnp.float32 and a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=eps * np.abs(b).max())
        assert (got.scores is not None) == masked
        if masked:
            known = scores > UNSEEN
            np.testing.assert_allclose(got.scores[known], scores[known], atol=eps * np.abs(scores[known]).max())


def test_rows_that_see_nothing_leave_no_trace(light_jit):
    """All of a row, and all of the first split; NaN in a tile that is not read does no harm."""
    lay = layout(32, 32, 32, 2, 32)
    past, q = random_past(lay, 4, 2, 1), random_queries(lay, 2, 1, 2, "float32")
    start, stop = jnp.asarray([64, 7], jnp.int32), jnp.asarray([128, 7], jnp.int32)
    poisoned = past._replace(k=past.k._replace(scale=past.k.scale.at[:2].set(jnp.nan)))
    config = AttentionConfig(rows=32, splits=2, warps=4, stages=2)

    def run(past):
        return kv_attention(q, past, start, stop, lay, implementation="interpret", config=config)

    got, clean = light_jit(run)(poisoned), kv_attention_reference(q, past, start, stop, None, lay)
    for a, b in zip(got[:3], clean[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(got.m[1]) == np.float32(UNSEEN)) and not np.any(got.acc[1]) and not np.any(got.l[1])


def test_over_layers_under_vmap_and_scan(light_jit):
    lay = layout(64, 64, 32, 2, 32)
    past = jax.tree.map(lambda *a: jnp.stack(a), *(random_past(lay, 1, 1, 2, (2, 2), seed=s) for s in range(2)))
    q, (start, stop) = random_queries(lay, 1, 2, 2, "float32"), edges(64, 1)

    def attend(past, implementation):
        return kv_attention(q, past, start, stop, lay, implementation=implementation)

    def all_of(past):
        mapped = [jax.vmap(lambda p, i=i: attend(p, i))(past) for i in ("interpret", "xla")]
        return *mapped, jax.lax.scan(lambda c, p: (c, attend(p, "interpret")), 0, past)[1]

    mapped, formula, scanned = light_jit(all_of)(past)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), mapped, formula)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), scanned, formula)


def test_gradients_are_those_of_the_formula(light_jit):
    lay = layout(32, 32, 16, 4, 16)
    past, q, (start, stop) = random_past(lay, 1, 1, 1), random_queries(lay, 1, 1, 1, "float32"), edges(64, 1)

    def loss(q, implementation):
        part = kv_attention(q, past, start, stop, lay, implementation=implementation)
        return jnp.sum((part.acc / part.l[..., None]) ** 2)

    ours, formula = light_jit(lambda q: [jax.grad(loss)(q, i) for i in ("interpret", "xla")])(q)
    np.testing.assert_allclose(ours, formula, rtol=2e-5, atol=1e-6)


REFUSED = {
    "bits": (lambda: layout(64, 64, 32, 9, 32), r"bits must be in 1\.\.8, got 9"),
    "tile": (lambda: layout(96, 96, 32, 2, 32), "tile must be 32, 64, 128 or 256, got 96"),
    "tokens": (lambda: layout(96, 64, 32, 2, 32), "tokens must be a positive multiple of tile=64, got 96"),
    "group of tokens": (lambda: layout(64, 64, 32, 2, 48, v_group=32), "divide the 64 tokens of a block, got 48"),
    "group of channels": (lambda: layout(64, 64, 32, 2, 32, v_group=12), "divide the width 32 of a token, got 12"),
    "axis": (lambda: layout(64, 64, 32, 2, 32, k_axis="row"), "axis must be 'channel' or 'token', got 'row'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_do_not_fit(name):
    make, what = REFUSED[name]
    with pytest.raises(ValueError, match=f"kv_attention: .*{what}"):
        make()


def test_arrays_that_do_not_fit():
    lay = layout(64, 64, 32, 2, 32)
    past, q, (start, stop) = random_past(lay, 1, 1, 2, (2, 0)), random_queries(lay, 1, 2, 2, "float32"), edges(64, 1)
    flags = jnp.ones((1, 1, 64), jnp.uint8)

    def refused(kind, what, **changed):
        call: dict[str, Any] = dict(q=q, past=past, start=start, stop=stop, seen=flags, bias=None) | changed
        with pytest.raises(kind, match=f"kv_attention: {what}"):
            kv_attention(layout=lay, **call)

    k = past.k
    refused(TypeError, "q must be bfloat16, float16 or float32, got int32", q=q.astype(jnp.int32))
    refused(ValueError, r"q must be \[B, K, G, d\] with d = 32, got shape \(1, 2, 2, 16\)", q=q[..., :16])
    refused(
        TypeError,
        "codes of k must be uint32 words, got int32",
        past=past._replace(k=Codes(k.codes.astype(int), *k[1:])),
    )
    refused(
        ValueError,
        r"codes of k must have shape \(1, 1, 2, 4, 32\), got \(1, 1, 2, 3, 32\)",
        past=past._replace(k=k._replace(codes=k.codes[..., :3, :])),
    )
    refused(ValueError, "sym=False of v does not go with low missing", past=past._replace(v=past.v._replace(low=None)))
    refused(
        ValueError,
        r"scale of k must have shape \(1, 1, 2, 2, 32\), got \(1, 1, 2, 1, 32\)",
        past=past._replace(k=k._replace(scale=k.scale[..., :1, :])),
    )
    refused(
        ValueError,
        r"a of k_fit must have shape \(1, 1, 2, 64, 2\), got \(1, 1, 2, 32, 2\)",
        past=past._replace(k_fit=Fit(jnp.ones((1, 1, 2, 32, 2)), jnp.ones((1, 1, 2, 32, 2)))),
    )
    refused(ValueError, r"start must be int32 \[1\], got int32 \[2\]", start=jnp.zeros(2, jnp.int32))
    refused(TypeError, "seen must be uint8, got bool", seen=flags != 0)
    refused(ValueError, r"seen must have shape \(1, 1, 64\), got \(1, 1, 32\)", seen=flags[..., :32])
    refused(TypeError, "bias must be float32, got bfloat16", bias=jnp.zeros((1, 1, 2, 2, 64), jnp.bfloat16))
    refused(
        ValueError, r"bias must have shape \(1, 1, 2, 2, 64\), got \(1, 1, 2, 2, 1\)", bias=jnp.zeros((1, 1, 2, 2, 1))
    )


def test_sizes_that_do_not_fit():
    lay, q = layout(64, 64, 32, 8, 32), jnp.zeros((1, 2, 2, 32))
    for rows in (16, 128):
        config = AttentionConfig(rows=rows, splits=1, warps=4, stages=1)
        if rows == 16:
            assert choose_config(q, 1, lay, config) is config
        else:
            with pytest.raises(
                ValueError, match=r"config.rows must be in 16\.\.64 for 8 and 8 bits at tile 64, got 128"
            ):
                choose_config(q, 1, lay, config)
    with pytest.raises(ValueError, match="AttentionConfig.rows must be a power of two from 16, got 24"):
        AttentionConfig(rows=24, splits=1, warps=4, stages=1)
    with pytest.raises(ValueError, match="AttentionConfig.splits and stages must be at least 1, got 0, 1"):
        AttentionConfig(rows=16, splits=0, warps=4, stages=1)
    with pytest.raises(ValueError, match="AttentionConfig.warps must be 1, 2, 4 or 8, got 3"):
        AttentionConfig(rows=16, splits=1, warps=3, stages=1)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        q, past, start, stop = spec.arguments()
        seen = spec.seen()
        out = jax.eval_shape(
            lambda q, p, a, b, s, lay=spec.layout: kv_attention(q, p, a, b, lay, seen=s), q, past, start, stop, seen
        )
        assert out.acc.shape == (*q.shape[:3], spec.layout.value.width)
        choose_config(q, spec.blocks, spec.layout).check(spec.layout)
