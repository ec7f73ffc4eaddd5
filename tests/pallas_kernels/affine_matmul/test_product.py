"""The kernel in the interpreter against float64, forward and backward, and under JAX's transformations."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from compressjax.leaf.affine import pack_affine
from pallas_kernels.affine_matmul import AffineLayout, affine_matmul, api
from pallas_kernels.affine_matmul.reference import affine_reference
from pallas_kernels.affine_matmul.specs import SPECS
from pallas_kernels.affine_matmul.triton import affine_matmul_triton
from pallas_kernels.product_config import ProductConfig

pytestmark = pytest.mark.kernels

# Relative rounding of each activation dtype, twice: of a weight or an operand, and of the result.
ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-18}


class Problem(NamedTuple):
    x: jax.Array
    codes: jax.Array
    scale: jax.Array
    zero: jax.Array | None
    y_bar: jax.Array
    layout: AffineLayout


def problem(m, rows, cols, *, bits=4, group=32, zero_kind="int", dtype="float32", tile=None, seed=0) -> Problem:
    rng = np.random.default_rng(seed)
    groups = -(-rows // group)
    scale = jnp.asarray(rng.uniform(0.05, 0.2, (groups, cols)) * rng.choice([-1, 1], (groups, cols)), jnp.float32)
    zero = {
        "none": None,
        "int": jnp.asarray(rng.integers(0, 2**bits, (groups, cols))),
        "real": jnp.asarray(rng.uniform(0, 2**bits, (groups, cols)), jnp.float32),
    }[zero_kind]
    codes = jnp.asarray(rng.integers(0, 2**bits, (rows, cols)))
    w = pack_affine(codes, scale, zero, bits=bits, group=group, zero_kind=zero_kind, tile=tile)
    layout = AffineLayout(bits=bits, group=group, tile=w.tile, rows=rows, cols=cols, zero_kind=zero_kind)
    x, y_bar = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((m, rows), (m, cols)))
    return Problem(x, w.codes, w.scale, w.zero, y_bar, layout)


def product(p: Problem, **kwargs):
    def call(x, scale, zero=p.zero):
        return affine_matmul(x, p.codes, scale, zero, p.layout, implementation="interpret", **kwargs)

    return call


def assert_within(got, want, terms, rounding):
    """``|got - want|`` within ``rounding`` of the sum of the terms' magnitudes, what rounding each of them may do."""
    error = np.abs(np.asarray(got, np.float64) - want)
    assert np.all(error <= rounding * (terms + np.abs(want)) + 1e-30), f"{(error / terms).max():.2e}"


def check_forward(p: Problem, y):
    want = affine_reference(p.x, p.codes, p.scale, p.zero, p.y_bar, p.layout)
    terms = affine_reference(np.abs(p.x), p.codes, np.abs(p.scale), p.zero, p.y_bar, p.layout).y
    # Terms of one sum: |x| @ |w|, of which the sum over |code - zero| is the part that must be computed.
    code = np.abs(magnitudes(p))
    assert_within(y, want.y, np.abs(np.asarray(p.x, np.float64)) @ code + np.abs(terms), ROUNDING[p.x.dtype.name])


def magnitudes(p: Problem):
    identity = np.eye(p.layout.rows)
    none = np.zeros((p.layout.rows, p.layout.cols))
    return affine_reference(identity, p.codes, p.scale, p.zero, none, p.layout).y


# One case for each width, zero, dtype and way of scaling; fields share groups unless noted.
CASES = {
    "w4-int-two-tiles": dict(m=3, rows=512, cols=40, group=128),
    "w4-short-last-group": dict(m=2, rows=300, cols=16, group=128, tile=64),
    "w3-real": dict(m=2, rows=256, cols=32, bits=3, zero_kind="real", dtype="bfloat16"),
    "w2-one-group-odd": dict(m=1, rows=192, cols=33, bits=2, group=192, zero_kind="none", dtype="float16"),
    "w8-fields-cross-groups": dict(m=2, rows=96, cols=32, bits=8, group=48),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_and_backward_against_float64(light_jit, case):
    p = problem(**case)
    real = (p.zero,) if p.layout.zero_kind == "real" else ()

    @light_jit
    def both(x, scale, y_bar, *zero):
        y, pull = jax.vjp(product(p), x, scale, *zero)
        return y, pull(y_bar)

    y, (x_bar, scale_bar, *zero_bar) = both(p.x, p.scale, p.y_bar, *real)
    want = affine_reference(p.x, p.codes, p.scale, p.zero, p.y_bar, p.layout)
    rounding = ROUNDING[p.x.dtype.name]
    w = np.abs(magnitudes(p))
    x_size, y_size = (np.abs(np.asarray(a, np.float64)) for a in (p.x, p.y_bar))
    assert y.dtype == p.x.dtype
    assert_within(y, want.y, x_size @ w, rounding)
    assert_within(x_bar, want.x_bar, y_size @ w.T, rounding)
    per_group = np.add.reduceat(x_size.T @ y_size, np.arange(p.layout.groups) * p.layout.group, axis=0)
    assert_within(scale_bar, want.scale_bar, per_group * 2**p.layout.bits, rounding)
    if real:
        assert_within(zero_bar[0], want.zero_bar, per_group * np.abs(p.scale), rounding)


def test_splits_add_up(light_jit):
    p = problem(2, 256, 16, tile=32)
    config = ProductConfig(block_m=16, block_n=16, tiles=4, splits=2, warps=2, stages=2)
    y = light_jit(product(p, config=config))(p.x, p.scale)
    np.testing.assert_allclose(y, affine_reference(*p).y, rtol=1e-5, atol=1e-4)


def test_uneven_splits_leave_nothing_out(light_jit):
    p = problem(1, 160, 16, tile=32, bits=8)
    config = ProductConfig(block_m=16, block_n=16, tiles=2, splits=2, warps=2, stages=2)
    y = light_jit(product(p, config=config))(p.x, p.scale)
    np.testing.assert_allclose(y, affine_reference(*p).y, rtol=1e-5, atol=1e-3)


def test_every_output_is_written(monkeypatch):
    """Blocks beyond the edges of the result included: the interpreter starts from NaN, and none may stay."""
    p = problem(17, 64, 33, group=64)
    config = ProductConfig(block_m=16, block_n=32, tiles=2, splits=1, warps=2, stages=2)
    y = affine_matmul_triton(p.x, p.codes, p.scale, p.zero, p.layout, config, interpret=True)
    assert np.all(np.isfinite(y))
    np.testing.assert_allclose(y, affine_reference(*p).y, rtol=1e-5, atol=1e-4)


def test_vmap_and_scan_over_stacked_layers(light_jit):
    layers = [problem(2, 64, 64, group=64, zero_kind="none", seed=seed) for seed in (1, 2)]
    x = layers[0].x
    codes, scale = (jnp.stack([getattr(p, name) for p in layers]) for name in ("codes", "scale"))
    layout = layers[0].layout

    def one(x, codes, scale):
        return affine_matmul(x, codes, scale, None, layout, implementation="interpret")

    @light_jit
    def both(x, codes, scale):
        each = jax.vmap(one, in_axes=(None, 0, 0))(x, codes, scale)
        deep, _ = jax.lax.scan(lambda x, w: (one(x, *w), None), x, (codes, scale))
        return each, deep

    each, deep = both(x, codes, scale)
    w = [np.asarray(magnitudes(p)) for p in layers]
    np.testing.assert_allclose(each, [x @ w[0], x @ w[1]], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(deep, x @ w[0] @ w[1], rtol=1e-4, atol=1e-3)


def test_shard_map_over_rows_of_activations():
    p = problem(8, 64, 32, group=64, zero_kind="none")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    # The interpreter's own loop does not carry varying axes, so they are not checked here but below.
    call = jax.shard_map(product(p), mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    np.testing.assert_allclose(jax.jit(call)(p.x, p.scale), affine_reference(*p).y, rtol=1e-5, atol=1e-4)


def test_shard_map_knows_what_varies(monkeypatch):
    """The kernel's result varies like its activations, and the gradient of a shared scale is summed over the mesh."""
    p = problem(8, 64, 32, group=64, zero_kind="none")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    monkeypatch.setattr(api, "needs_gpu", lambda: None)

    def call(x, scale):
        return affine_matmul(x, p.codes, scale, None, p.layout, implementation="triton")

    def scale_bar(x, scale):
        return jax.grad(lambda scale: jnp.sum(call(x, scale)))(scale)

    specs = dict(mesh=mesh, in_specs=(P("data"), P()))
    jax.make_jaxpr(jax.shard_map(call, out_specs=P("data"), **specs))(p.x, p.scale)
    text = str(jax.make_jaxpr(jax.shard_map(scale_bar, out_specs=P(), **specs))(p.x, p.scale))
    assert "psum" in text
    with pytest.raises(ValueError, match="varying|replicat"):
        jax.make_jaxpr(jax.shard_map(call, out_specs=P(), **specs))(p.x, p.scale)


def test_leading_axes_and_no_rows(light_jit):
    p = problem(6, 64, 32, group=64)
    y = light_jit(product(p))(p.x.reshape(2, 3, 64), p.scale)
    np.testing.assert_allclose(y.reshape(6, 32), affine_reference(*p).y, rtol=1e-5, atol=1e-4)
    assert product(p)(p.x[:0], p.scale).shape == (0, 32)


def test_xla_agrees_with_float64():
    p = problem(3, 300, 33, bits=3, group=48, zero_kind="int", tile=64)
    y = affine_matmul(p.x, p.codes, p.scale, p.zero, p.layout, implementation="xla")
    np.testing.assert_allclose(y, affine_reference(*p).y, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_spec_shrunk(light_jit, spec):
    """Kinds and ratios of real layers at an eighth of their extents."""
    lay = spec.layout
    rows, cols = max(lay.group, lay.rows // 16 // lay.tile * lay.tile), max(16, lay.cols // 32)
    p = problem(
        min(spec.m, 64),
        rows,
        cols,
        bits=lay.bits,
        group=lay.group,
        zero_kind=lay.zero_kind,
        dtype=spec.dtype,
        tile=lay.tile,
    )
    check_forward(p, light_jit(product(p))(p.x, p.scale))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_shape(light_jit, data):
    bits, tile = data.draw(st.sampled_from((2, 3, 4, 8))), data.draw(st.sampled_from((32, 64, 128)))
    rows, cols, m = (data.draw(st.integers(1, most)) for most in (200, 40, 20))
    group = data.draw(st.sampled_from((8, 16, 32, 48, 64, rows)))
    kind = data.draw(st.sampled_from(("int", "real", "none")))
    p = problem(m, rows, cols, bits=bits, group=group, zero_kind=kind, tile=tile)
    check_forward(p, light_jit(product(p))(p.x, p.scale))


def test_config_must_make_products_deep_enough():
    p = problem(1, 64, 16, tile=32)
    config = dataclasses.replace(ProductConfig(block_m=16, block_n=16, tiles=4, splits=1, warps=2, stages=2), tiles=1)
    with pytest.raises(ValueError, match="config.tiles must be at least 4 for 4 bits at tile 32"):
        product(p, config=config)(p.x, p.scale)
