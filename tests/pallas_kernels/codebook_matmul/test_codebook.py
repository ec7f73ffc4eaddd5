"""The product with tables in the interpreter against float64, forward and backward; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressjax.leaf.codebook import pack_codebook
from pallas_kernels.codebook_matmul import CodebookLayout, codebook_matmul
from pallas_kernels.codebook_matmul.reference import codebook_matrix, codebook_reference
from pallas_kernels.codebook_matmul.specs import SPECS

pytestmark = pytest.mark.kernels

ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-18}


def problem(m, rows, cols, *, levels, group=None, dtype="float32", tile=None, seed=0):
    rng = np.random.default_rng(seed)
    group = group or rows
    codes = jnp.asarray(rng.integers(0, levels, (rows, cols)))
    tables = jnp.asarray(rng.normal(size=(-(-rows // group), levels, cols)), jnp.float32)
    w = pack_codebook(codes, tables, group=group, tile=tile)
    layout = CodebookLayout(levels=levels, group=group, tile=w.tile, rows=rows, cols=cols)
    x = jnp.asarray(rng.normal(size=(m, rows)), dtype)
    return x, w.codes, tables, layout


def check(y, x, codes, tables, layout):
    size = np.abs(np.asarray(x, np.float64)) @ np.abs(codebook_matrix(codes, tables, layout))
    error = np.abs(np.asarray(y, np.float64) - codebook_reference(x, codes, tables, layout))
    assert np.all(error <= 2 * ROUNDING[x.dtype.name] * size + 1e-30)


CASES = {
    "16-one-table": dict(m=3, rows=256, cols=40, levels=16),
    "7-two-tables-half": dict(m=1, rows=128, cols=33, levels=7, group=64, dtype="float16"),
    "64-by-loads": dict(m=2, rows=64, cols=16, levels=64, dtype="bfloat16"),
    "4-groups-across-fields": dict(m=2, rows=100, cols=16, levels=4, group=48),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_forward_against_float64(light_jit, case):
    x, codes, tables, layout = problem(**case)

    def call(x, codes, tables):
        return codebook_matmul(x, codes, tables, layout, implementation="interpret")

    y = light_jit(call)(x, codes, tables)
    assert y.dtype == x.dtype
    check(y, x, codes, tables, layout)


def test_backward_is_the_formula(light_jit):
    x, codes, tables, layout = problem(3, 64, 16, levels=8, group=32)
    y_bar = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)

    @light_jit
    def pull(x, tables, y_bar):
        def call(x, tables):
            return codebook_matmul(x, codes, tables, layout, implementation="interpret")

        return jax.vjp(call, x, tables)[1](y_bar)

    x_bar, tables_bar = pull(x, tables, y_bar)
    np.testing.assert_allclose(x_bar, y_bar @ codebook_matrix(codes, tables, layout).T, rtol=1e-4, atol=1e-4)
    w_bar = np.asarray(x, np.float64).T @ np.asarray(y_bar, np.float64)
    # Linear in each table, so the gradient is the change of the sum when one level moves by 1.
    for group, level, col in ((0, 0, 0), (1, 7, 15), (0, 3, 5)):
        moved = tables.at[group, level, col].add(1)
        change = codebook_matrix(codes, moved, layout) - codebook_matrix(codes, tables, layout)
        np.testing.assert_allclose(tables_bar[group, level, col], np.sum(w_bar * change), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_shape(light_jit, data):
    levels, tile = data.draw(st.integers(2, 40)), data.draw(st.sampled_from((32, 64, 128)))
    rows, cols, m = (data.draw(st.integers(1, most)) for most in (160, 40, 20))
    group = data.draw(st.sampled_from((16, 32, 48, rows)))
    x, codes, tables, layout = problem(m, rows, cols, levels=levels, group=group, tile=tile)
    y = light_jit(lambda *a: codebook_matmul(*a, layout, implementation="interpret"))(x, codes, tables)
    check(y, x, codes, tables, layout)


@pytest.mark.parametrize(
    "changed, error, what",
    [
        ({"x": ((2, 64), "int32")}, TypeError, "x must be bfloat16, float16 or float32, got int32"),
        ({"x": ((2, 60), "float32")}, ValueError, r"x must end in the 64 inputs .* got shape \(2, 60\)"),
        ({"codes": ((8, 48), "int32")}, ValueError, r"codes must be uint32 of shape \(8, 48\) for 4 bits"),
        ({"levels": ((2, 15, 48), "float32")}, ValueError, r"levels must have shape \(2, 16, 48\), got \(2, 15, 48\)"),
        ({"levels": ((2, 16, 48), "int32")}, TypeError, "levels must be floating point, got int32"),
    ],
)
def test_arrays_that_do_not_fit(changed, error, what):
    layout = CodebookLayout(levels=16, group=32, tile=64, rows=64, cols=48)
    shapes = dict(x=((2, 64), "float32"), codes=((8, 48), "uint32"), levels=((2, 16, 48), "float32")) | changed
    arrays = {name: jnp.zeros(*kind) for name, kind in shapes.items()}
    with pytest.raises(error, match=f"codebook_matmul: {what}"):
        codebook_matmul(**arrays, layout=layout)


def test_layouts_that_cannot_be():
    with pytest.raises(ValueError, match=r"levels must be in 2..256, got 1"):
        CodebookLayout(levels=1, group=32, tile=64, rows=64, cols=48)
    with pytest.raises(ValueError, match="cols must be at least 1, got 0"):
        CodebookLayout(levels=4, group=32, tile=64, rows=64, cols=0)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        jax.eval_shape(lambda *a, lay=spec.layout: codebook_matmul(*a, lay, implementation="xla"), *spec.arguments())
