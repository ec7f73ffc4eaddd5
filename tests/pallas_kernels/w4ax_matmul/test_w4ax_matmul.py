"""The product with rounded activations in the interpreter: exact in integers, and reached by the leaf."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from compressjax.leaf.w4ax import kernel_operands, kernel_refusal, pack_w4ax
from compressjax.ops import dense, matmul, on_gpu
from pallas_kernels.specs import layer
from pallas_kernels.w4ax_matmul import W4AxLayout, W4AxWeight, api, w4ax_matmul, w4ax_quantize
from pallas_kernels.w4ax_matmul.arithmetic import widened, widening
from pallas_kernels.w4ax_matmul.config import W4AxConfig, choose_config
from pallas_kernels.w4ax_matmul.reference import rounded_reference, w4ax_reference, weight_codes
from pallas_kernels.w4ax_matmul.specs import SPECS
from pallas_kernels.w4ax_matmul.xla import dense_matrix

from .ptx import run_ptx

pytestmark = pytest.mark.kernels

FUSED = W4AxConfig(fused=True, block_m=16, block_n=32, splits=1, warps=2, stages=2)
APART = W4AxConfig(fused=False, block_m=16, block_n=32, splits=1, warps=2, stages=2)


def problem(m, rows, cols, *, block=64, n_hi=1, permuted=True, dtype="float32", scale="float16", seed=0, **options):
    rng = np.random.default_rng(seed)
    layout = W4AxLayout(block=block, rows=rows, cols=cols, **options)
    weight = W4AxWeight(
        jnp.asarray(rng.integers(0, 256, (layout.blocks * layout.half, cols)), jnp.uint8),
        jnp.asarray(rng.uniform(0.05, 0.2, (layout.blocks, cols)), scale),
        jnp.asarray(rng.permutation(rows), jnp.uint16) if permuted else None,
        jnp.int32(n_hi),
    )
    return jnp.asarray(rng.normal(size=(m, rows)), dtype), weight, layout


def both(light_jit, x, weight, layout, config=None):
    """The kernel's result and the formula's."""

    def call(x, weight):
        return [w4ax_matmul(x, weight, layout, implementation=i, config=config) for i in ("interpret", "xla")]

    return light_jit(call)(x, weight)


def assert_products(got, x, weight, layout):
    """Within the rounding of the result and of a float32 sum over blocks of terms as large as they are."""
    codes, scale = rounded_reference(x, weight, layout)
    exact = np.einsum("mbk,bkr->mbr", codes, weight_codes(weight, layout))
    terms = np.abs(exact * scale[..., None] * np.asarray(weight.scale, np.float64)).sum(axis=1)
    wanted = w4ax_reference(x, weight, layout)
    eps = float(jnp.finfo(got.dtype).eps)
    assert got.dtype == x.dtype and got.shape == wanted.shape
    slack = eps * np.abs(wanted) + (layout.blocks + 2) * 2.0**-24 * terms
    assert np.all(np.abs(np.asarray(got, np.float64) - wanted) <= slack)


CASES = {  # rows of activations, inputs, outputs, fields, config
    "one-row": ((1, 192, 64), dict(scale="bfloat16"), FUSED),
    "splits": ((3, 300, 40), dict(n_hi=3, dtype="float16"), dataclasses.replace(FUSED, splits=2)),
    "whole-block": ((16, 128, 64), dict(block=128, n_hi=0, permuted=False, scale="float32"), FUSED),
    "two-launches": ((20, 300, 70), dict(block=128, dtype="bfloat16"), APART),
    "in-order-short-block": ((17, 200, 32), dict(permuted=False, n_hi=4), APART),
    "few-bits-clipped": ((5, 256, 32), dict(block=256, hi_bits=5, lo_bits=2, act_clip=0.8), APART),
}


@pytest.mark.parametrize("name", CASES)
def test_products(light_jit, name):
    (m, rows, cols), fields, config = CASES[name]
    x, weight, layout = problem(m, rows, cols, **fields)
    for got in both(light_jit, x, weight, layout, config):
        assert_products(got, x, weight, layout)


@pytest.mark.parametrize("title, m", [("SmolLM2-135M/kv", 1), ("Qwen3-0.6B/down", 3), ("Llama-3-8B/q", 17)])
def test_real_inputs_and_a_few_outputs(light_jit, title, m):
    """All inputs of real layers, in blocks as specs have them, and 32 outputs."""
    spec = next(spec for spec in SPECS if spec.title == title)
    x, weight, layout = problem(m, layer(title).inputs, 32, block=spec.layout.block, n_hi=3, dtype=spec.dtype)
    got, _ = both(light_jit, x, weight, layout)
    assert_products(got, x, weight, layout)


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 18),
    rows=st.integers(64, 200),
    pairs=st.integers(1, 40),
    permuted=st.booleans(),
    n_hi=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_shapes(light_jit, m, rows, pairs, permuted, n_hi, seed):
    x, weight, layout = problem(m, rows, 2 * pairs, permuted=permuted, n_hi=n_hi, seed=seed)
    got, _ = both(light_jit, x, weight, layout, APART if seed % 2 else None)
    assert_products(got, x, weight, layout)


@pytest.mark.parametrize("config", [FUSED, APART])
def test_integers_are_exact(light_jit, config):
    """Where every scale is a power of two, nothing is rounded but the activations: equal bit for bit, all codes met."""
    rng = np.random.default_rng(3)
    _, weight, layout = problem(5, 256, 64, block=128, permuted=False)
    x = rng.integers(-7, 8, (5, 256)).astype(np.float32)
    x[:, 1:128] = rng.integers(-127, 128, (5, 127))
    x[:, 0], x[:, 128] = 127, 7  # so that a code is worth one
    x[4] = -127 * (np.arange(256) < 128) - 7 * (np.arange(256) >= 128)  # the largest sums there are
    weight = weight._replace(
        codes=weight.codes.at[:, 0].set(0x88), scale=jnp.asarray(2.0 ** rng.integers(-3, 3, (2, 64)), jnp.float16)
    )
    for got in both(light_jit, jnp.asarray(x), weight, layout, config):
        np.testing.assert_array_equal(got, w4ax_reference(x, weight, layout))


def test_activations_are_rounded_as_defined(light_jit):
    """The codes and the scales of the launch that rounds, bit for bit, zeros and ties among them."""
    x, weight, layout = problem(18, 200, 2, n_hi=2)
    x = x.at[3].set(0.0).at[4].set(jnp.round(x[4] * 4) / 4).at[5].set(1e-41)

    def call(x, weight):
        return [w4ax_quantize(x, weight, layout, implementation=i) for i in ("interpret", "xla")]

    codes, scale = rounded_reference(x, weight, layout)
    assert np.abs(codes[:, :2]).max() == 127 and np.abs(codes[:, 2:]).max() == 7
    for got in light_jit(call)(x, weight):
        np.testing.assert_array_equal(got.codes, codes.reshape(18, -1))
        np.testing.assert_array_equal(got.scale, scale.T)


@pytest.mark.parametrize("config", [FUSED, APART])
def test_what_is_not_finite_stays_so(light_jit, config):
    x, weight, layout = problem(3, 64, 32, n_hi=0)
    x = x.at[0, 5].set(jnp.nan).at[1, 7].set(jnp.inf)
    for got in both(light_jit, x, weight, layout, config):
        assert jnp.all(jnp.isnan(got[0])) and not jnp.any(jnp.isfinite(got[1])) and jnp.all(jnp.isfinite(got[2]))


@pytest.mark.parametrize("lane", [0, 1])
@pytest.mark.parametrize("high", [False, True])
def test_assembly_is_the_formula(lane, high):
    """Both bytes in all their values at each of the four places, against the host's formula and the codes."""
    pairs = np.random.default_rng(0).permutation(np.tile(np.arange(2**16, dtype=np.uint16), 4))
    words = pairs.view("<u4").reshape(-1, 2)
    made = run_ptx(widening(lane, high), words[:, 0], words[:, 1]).astype("<u4").view(np.int8)
    np.testing.assert_array_equal(made, widened(jnp.asarray(pairs), lane, high))
    nibble = pairs >> np.uint16(8 * lane + 4 * high) & np.uint16(15)
    np.testing.assert_array_equal(made, 16 * (nibble.astype(int) - 16 * (nibble > 7)))


def test_layers_under_vmap_and_scan(light_jit):
    """Each layer has a permutation and a number of wide blocks of its own."""
    layers = [problem(2, 128, 128, n_hi=n_hi, seed=n_hi) for n_hi in (0, 2)]
    x, layout = layers[0][0], layers[0][2]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(weight for _, weight, _ in layers))

    def one(x, weight, name):
        return w4ax_matmul(x, weight, layout, implementation=name, config=FUSED)

    @light_jit
    def all_of(x, stacked):
        found = []
        for name in ("interpret", "xla"):
            each = jax.vmap(lambda w, name=name: one(x, w, name))(stacked)
            found.append((each, jax.lax.scan(lambda x, w, name=name: (one(x, w, name), None), x, stacked)[0]))
        return found

    (each, deep), formula = all_of(x, stacked)
    for got, (_, weight, _) in zip(each, layers, strict=True):
        assert_products(got, x, weight, layout)
    np.testing.assert_allclose(each, formula[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(deep, formula[1], rtol=1e-4, atol=1e-4)


def test_shard_map_knows_what_varies(monkeypatch):
    """The result varies like the activations, and the gradient of a shared scale is summed over the mesh."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    monkeypatch.setattr(api, "needs_gpu", lambda: None)
    for rows in (8, 80):
        x, weight, layout = problem(rows, 64, 32)

        def call(x, scale, weight=weight, layout=layout):
            return w4ax_matmul(x, weight._replace(scale=scale), layout, implementation="triton")

        def scale_bar(x, scale, call=call):
            return jax.grad(lambda scale: jnp.sum(call(x, scale).astype(jnp.float32)))(scale)

        specs = dict(mesh=mesh, in_specs=(P("data"), P()))
        jax.make_jaxpr(jax.shard_map(call, out_specs=P("data"), **specs))(x, weight.scale)
        text = str(jax.make_jaxpr(jax.shard_map(scale_bar, out_specs=P(), **specs))(x, weight.scale))
        assert "psum" in text
        with pytest.raises(ValueError, match="varying|replicat"):
            jax.make_jaxpr(jax.shard_map(call, out_specs=P(), **specs))(x, weight.scale)


@pytest.mark.parametrize("clip", [1.0, 0.5])
def test_gradients_are_those_of_the_leaf(light_jit, clip):
    """Straight through the rounding, and through the scale; none where values saturate."""
    rng = np.random.default_rng(0)
    w = pack_w4ax(
        jnp.asarray(rng.integers(-8, 8, (96, 32))),
        jnp.asarray(rng.uniform(0.05, 0.2, (2, 32)), jnp.float32),
        jnp.asarray(rng.permutation(96)),
        1,
        block=64,
        act_clip=clip,
    )
    weight, layout = kernel_operands(w)
    x = jnp.asarray(rng.normal(size=(3, 96)), jnp.float32)

    def loss(x, scale, product):
        return jnp.sum(jnp.sin(product(x, scale)))

    def ours(x, scale):
        return w4ax_matmul(x, weight._replace(scale=scale), layout, implementation="interpret", config=FUSED)

    def leaf(x, scale):
        return matmul(x, jax.tree.unflatten(tree, [scale if a is w.scale else a for a in leaves]))

    leaves, tree = jax.tree.flatten(w)
    got, wanted = light_jit(lambda x, s: [jax.grad(loss, (0, 1))(x, s, f) for f in (ours, leaf)])(x, w.scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)
    straight = np.cos(w4ax_reference(x, weight, layout)) @ np.asarray(dense(w)).T
    saturated = np.asarray(got[0]) == 0
    assert (saturated.sum() > 0) == (clip < 1)
    np.testing.assert_allclose(np.asarray(got[0])[~saturated], straight[~saturated], rtol=1e-3, atol=1e-4)


def test_the_leaf_takes_the_kernel(monkeypatch):
    """Where a GPU is the default device; the kernel is stood in for by its formula here."""
    rng = np.random.default_rng(0)
    codes, scale = jnp.asarray(rng.integers(-8, 8, (128, 32))), jnp.full((2, 32), 0.1, jnp.float16)
    w = pack_w4ax(codes, scale, jnp.asarray(rng.permutation(128)), 1, block=64)
    x = jnp.asarray(rng.normal(size=(2, 3, 128)), jnp.float32)
    expected, calls = matmul(x, w), []
    np.testing.assert_allclose(dense_matrix(*kernel_operands(w)), dense(w), rtol=1e-6)

    def stand_in(*args, implementation):
        assert implementation == "triton"
        calls.append(args[0].shape)
        return w4ax_matmul(*args, implementation="xla")

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.w4ax_matmul.w4ax_matmul", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    np.testing.assert_allclose(matmul(x, w), expected, rtol=1e-5, atol=1e-5)
    assert calls == [(2, 3, 128)]


def test_what_the_kernel_does_not_take():
    codes = jnp.zeros((128, 32), jnp.int32)
    x = jnp.zeros((2, 128))
    for what, w in (
        ("half a block of 32", pack_w4ax(codes, jnp.ones((4, 32)), None, 0, block=32)),
        ("codes of 16 bits", pack_w4ax(codes, jnp.ones((2, 32)), None, 0, block=64, hi_bits=16)),
        ("there are 31", pack_w4ax(codes[:, :31], jnp.ones((2, 31)), None, 0, block=64)),
        ("stack of layers", pack_w4ax(codes[None], jnp.ones((1, 2, 32)), None, 0, block=64)),
    ):
        assert what in str(kernel_refusal(x, w))
    _, weight, layout = problem(2, 128, 31)
    with pytest.raises(ValueError, match="implementation='interpret' cannot run: outputs are read in pairs.* 31"):
        w4ax_matmul(x, weight, layout, implementation="interpret")
    assert w4ax_matmul(x, weight, layout).shape == (2, 31)
    _, weight, layout = problem(2, 128, 32)
    assert w4ax_matmul(x[:0], weight, layout, implementation="interpret").shape == (0, 32)
    with pytest.raises(ValueError, match="config.fused takes at most 16 rows, got 17"):
        w4ax_matmul(jnp.zeros((17, 128)), weight, layout, implementation="interpret", config=FUSED)
    for changed, what in (
        (dict(block_n=16), "block_n must be a power of two from 32, got 16"),
        (dict(block_m=32), "block_m must be 16 where fused, got 32"),
        (dict(splits=0), "splits and stages must be at least 1, got 0"),
        (dict(warps=3), "warps must be 1, 2, 4 or 8, got 3"),
    ):
        with pytest.raises(ValueError, match=f"W4AxConfig.{what}"):
            dataclasses.replace(FUSED, **changed)


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(block=48), r"block must be one of \(32, .*256\), got 48"),
        (dict(rows=0), "rows must be at least 1, got 0"),
        (dict(hi_bits=9), r"hi_bits must be in 2\.\.8, got 9"),
        (dict(lo_bits=1), r"lo_bits must be in 2\.\.8, got 1"),
        (dict(hi_bits=4, lo_bits=5), "lo_bits must be at most hi_bits=4, got 5"),
        (dict(act_clip=1.5), r"act_clip must be in \(0, 1\], got 1.5"),
    ],
)
def test_layouts_that_do_not_fit(changed, what):
    with pytest.raises(ValueError, match=f"w4ax_matmul: {what}"):
        W4AxLayout(**(dict(block=64, rows=128, cols=32) | changed))


def test_arrays_that_do_not_fit():
    x, weight, layout = problem(2, 100, 32)
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32, got int8"):
        w4ax_matmul(x.astype(jnp.int8), weight, layout)
    with pytest.raises(ValueError, match=r"x must end in the 100 inputs .* got shape \(2, 64\)"):
        w4ax_matmul(x[:, :64], weight, layout)
    with pytest.raises(ValueError, match=r"x must be \[m, 100\] to be quantised, got shape \(1, 2, 100\)"):
        w4ax_quantize(x[None], weight, layout)
    for name, array, wanted, kind in (
        ("codes", weight.codes[:50], r"must have shape \(64, 32\), got \(50, 32\)", ValueError),
        ("codes", weight.codes.astype(jnp.int8), "must be uint8, got int8", TypeError),
        ("scale", weight.scale[:, :3], r"must have shape \(2, 32\), got \(2, 3\)", ValueError),
        ("scale", weight.scale.astype(jnp.int32), "must be bfloat16 or float16 or float32, got int32", TypeError),
        ("perm", jnp.arange(100, dtype=jnp.int32), "must be uint16 or uint32, got int32", TypeError),
        ("n_hi", jnp.zeros(1, jnp.int32), r"must have shape \(\), got \(1,\)", ValueError),
    ):
        with pytest.raises(kind, match=f"w4ax_matmul: {name} {wanted}"):
            w4ax_matmul(x, weight._replace(**{name: array}), layout)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x, weight = spec.arguments()
        config = choose_config(spec.m, spec.layout)
        assert config.fused == (spec.m <= 16)
        out = jax.eval_shape(lambda x, w, lay=spec.layout: w4ax_matmul(x, w, lay), x, weight)
        assert out.shape == (spec.m, spec.layout.cols) and out.dtype == x.dtype
