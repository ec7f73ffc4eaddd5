"""The product with additive codes in the interpreter against float64, forward and backward; refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.provenance import RESULTS, read_result
from pallas_kernels.additive_matmul import AdditiveLayout, additive_matmul
from pallas_kernels.additive_matmul.config import LANES, AdditiveConfig, choose_config
from pallas_kernels.additive_matmul.reference import additive_matrix, additive_reference
from pallas_kernels.additive_matmul.specs import SPECS

pytestmark = pytest.mark.kernels

ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-18}
SMALL = AdditiveConfig(block_m=16, block_n=16, quads=1, splits=1, warps=2)


def problem(m, layout, *, dtype="float32", books_dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(0, layout.entries, layout.codes_shape), layout.code_dtype)
    codebooks = jnp.asarray(rng.normal(size=layout.books_shape), books_dtype or dtype)
    scale = jnp.asarray(rng.uniform(0.5, 2, layout.cols), books_dtype or dtype)
    return jnp.asarray(rng.normal(size=(m, layout.rows)), dtype), codes, codebooks, scale


def check(y, arrays, layout):
    """Sums of vectors are rounded to the dtype of x, so errors are in proportion to the sum, not to its terms."""
    x = np.asarray(arrays[0]).astype(np.float64)
    size = np.abs(x) @ np.abs(additive_matrix(*arrays[1:], layout))
    error = np.abs(np.asarray(y).astype(np.float64) - additive_reference(*arrays, layout))
    assert np.all(error <= 2 * ROUNDING[y.dtype.name] * size + 1e-30)


CASES = {  # rows of x, what is fixed, dtypes, config
    "2x8-by-rule": (3, dict(books=2, entries=256, group=8, rows=512, cols=40), {}, None),
    "2x8-ragged-half": (
        1,
        dict(books=2, entries=256, group=8, rows=72, cols=33),
        dict(dtype="bfloat16"),
        AdditiveConfig(block_m=16, block_n=32, quads=2, splits=2, warps=4),
    ),
    "1x16-g16-two-dtypes": (
        2,
        dict(books=1, entries=300, group=16, rows=128, cols=16),
        dict(dtype="bfloat16", books_dtype="float16"),
        SMALL,
    ),
    "4x8-g4": (2, dict(books=4, entries=64, group=4, rows=64, cols=16), dict(dtype="float16"), SMALL),
    "1x8-many-rows": (
        70,
        dict(books=1, entries=16, group=8, rows=64, cols=32),
        {},
        AdditiveConfig(block_m=64, block_n=32, quads=2, splits=1, warps=4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_against_float64(light_jit, name):
    m, fields, dtypes, config = CASES[name]
    layout = AdditiveLayout(**fields)
    arrays = problem(m, layout, **dtypes)

    def both(*arrays):
        return [additive_matmul(*arrays, layout, implementation=i, config=config) for i in ("interpret", "xla")]

    for y in light_jit(both)(*arrays):
        assert y.dtype == arrays[0].dtype and y.shape == (m, layout.cols)
        check(y, arrays, layout)


@pytest.mark.parametrize("group, dtype, books_dtype", [(8, "float32", "float32"), (16, "bfloat16", "bfloat16")])
def test_every_pair_of_codes_is_its_two_vectors(light_jit, group, dtype, books_dtype):
    """Small integers are exact: any number of a vector that is taken from another place shows."""
    layout = AdditiveLayout(books=2, entries=4, group=group, rows=4 * group, cols=16)
    pairs = np.array(list(itertools.product(range(4), repeat=2)))
    codes = jnp.asarray(np.stack([np.roll(pairs, i, axis=0) for i in range(4)]), jnp.uint8)
    codebooks = jnp.arange(8 * group, dtype=books_dtype).reshape(layout.books_shape)
    scale = jnp.asarray(2.0 ** (np.arange(16) % 3), books_dtype)

    def call(x):
        return additive_matmul(x, codes, codebooks, scale, layout, implementation="interpret", config=SMALL)

    w = light_jit(call)(jnp.eye(4 * group, dtype=dtype))
    np.testing.assert_array_equal(w.astype(jnp.float32), additive_matrix(codes, codebooks, scale, layout))


def test_backward(light_jit):
    """In the interpreter, against float64: each array is moved where the product is linear in it."""
    layout = AdditiveLayout(books=2, entries=8, group=8, rows=64, cols=16)
    x, codes, codebooks, scale = problem(3, layout)
    y_bar = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)

    @light_jit
    def pull(x, codebooks, scale, y_bar):
        def call(x, codebooks, scale):
            return additive_matmul(x, codes, codebooks, scale, layout, implementation="interpret", config=SMALL)

        return jax.vjp(call, x, codebooks, scale)[1](y_bar)

    x_bar, books_bar, scale_bar = pull(x, codebooks, scale, y_bar)
    w = additive_matrix(codes, codebooks, scale, layout)
    np.testing.assert_allclose(x_bar, y_bar @ w.T, rtol=1e-4, atol=1e-4)
    w_bar = np.asarray(x, np.float64).T @ np.asarray(y_bar, np.float64)
    unscaled = w / np.asarray(scale, np.float64)
    np.testing.assert_allclose(scale_bar, np.sum(w_bar * unscaled, axis=0), rtol=1e-4, atol=1e-4)
    wanted = np.zeros(layout.books_shape)
    for group, col, book in np.ndindex(*layout.codes_shape):
        run = slice(group * layout.group, (group + 1) * layout.group)
        wanted[book, int(codes[group, col, book])] += w_bar[run, col] * float(scale[col])
    np.testing.assert_allclose(books_bar, wanted, rtol=1e-4, atol=1e-3)


def test_vmap_and_scan_equal_one_after_the_other(light_jit):
    layout = AdditiveLayout(books=2, entries=8, group=4, rows=32, cols=16)
    layers = [problem(2, layout, seed=seed) for seed in range(3)]
    x, codes, codebooks, scale = (jnp.stack(each) for each in zip(*layers, strict=True))

    def one(x, *arrays):
        return additive_matmul(x, *arrays, layout, implementation="interpret", config=SMALL)

    @light_jit
    def three_ways(x, *arrays):
        scanned = jax.lax.scan(lambda carry, each: (carry, one(*each)), 0, (x, *arrays))[1]
        return jax.vmap(one)(x, *arrays), scanned

    for got in three_ways(x, codes, codebooks, scale):
        for nth, layer in enumerate(layers):
            check(got[nth], layer, layout)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_shape(light_jit, data):
    books, entries = data.draw(st.sampled_from(((1, 5), (2, 256), (4, 17), (1, 999), (2, 300))))
    group = data.draw(st.sampled_from((4, 8, 16)))
    groups, cols, m = (data.draw(st.integers(1, most)) for most in (40, 40, 40))
    layout = AdditiveLayout(books=books, entries=entries, group=group, rows=groups * group, cols=cols)
    arrays = problem(m, layout, dtype=data.draw(st.sampled_from(("float32", "bfloat16"))), books_dtype="float32")
    config = AdditiveConfig(
        block_m=data.draw(st.sampled_from((16, 32))),
        block_n=data.draw(st.sampled_from((16, 32))),
        quads=data.draw(st.sampled_from((1, 2, 4))),
        splits=data.draw(st.integers(1, 3)),
        warps=4,
    )
    y = light_jit(lambda *a: additive_matmul(*a, layout, implementation="interpret", config=config))(*arrays)
    check(y, arrays, layout)


def test_no_rows_and_many_axes():
    layout = AdditiveLayout(books=1, entries=4, group=4, rows=16, cols=8)
    _, *weight = problem(1, layout)
    assert additive_matmul(jnp.zeros((0, 16)), *weight, layout, implementation="interpret").shape == (0, 8)
    assert additive_matmul(jnp.zeros((2, 3, 16)), *weight, layout).shape == (2, 3, 8)
    assert additive_matmul(jnp.zeros(16), *weight, layout).shape == (8,)


@pytest.mark.parametrize(
    "changed, error, what",
    [
        ({"x": ((2, 64), "int32")}, TypeError, "x must be bfloat16, float16 or float32, got int32"),
        ({"x": ((2, 60), "float32")}, ValueError, r"x must end in the 64 inputs .* got shape \(2, 60\)"),
        ({"codes": ((8, 48, 2), "uint16")}, ValueError, r"codes must be uint8 of shape \(8, 48, 2\) for entries=16"),
        ({"codes": ((8, 48), "uint8")}, ValueError, r"codes must be .* got uint8 of shape \(8, 48\)"),
        (
            {"codebooks": ((2, 15, 8), "float32")},
            ValueError,
            r"codebooks must have shape \(2, 16, 8\), got \(2, 15, 8\)",
        ),
        ({"codebooks": ((2, 16, 8), "int8")}, TypeError, "codebooks must be bfloat16, float16 or float32, got int8"),
        ({"scale": ((48, 1), "float32")}, ValueError, r"scale must have shape \(48,\), got \(48, 1\)"),
    ],
)
def test_arrays_that_do_not_fit(changed, error, what):
    layout = AdditiveLayout(books=2, entries=16, group=8, rows=64, cols=48)
    shapes = dict(
        x=((2, 64), "float32"),
        codes=((8, 48, 2), "uint8"),
        codebooks=((2, 16, 8), "float32"),
        scale=((48,), "float32"),
    )
    arrays = {name: jnp.zeros(*kind) for name, kind in (shapes | changed).items()}
    with pytest.raises(error, match=f"additive_matmul: {what}"):
        additive_matmul(**arrays, layout=layout)


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(books=3), r"books must be one of \(1, 2, 4\), got 3"),
        (dict(entries=1), r"entries must be in 2..65536, got 1"),
        (dict(entries=65537), "entries must be in 2..65536, got 65537"),
        (dict(books=4, entries=512), "at most 32 bits, got books=4 of 16 bits for entries=512"),
        (dict(group=2), r"group must be one of \(4, 8, 16\), got 2"),
        (dict(rows=60), "group=8 must divide the 60 rows"),
        (dict(cols=0), "cols must be at least 1, got 0"),
    ],
)
def test_layouts_that_cannot_be(changed, what):
    good = dict(books=2, entries=256, group=8, rows=64, cols=48)
    with pytest.raises(ValueError, match=f"additive_matmul: .*{what}"):
        AdditiveLayout(**(good | changed))


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(block_n=8), "block_n must be a power of two from 16, got 8"),
        (dict(quads=3), "quads must be a power of two from 1, got 3"),
        (dict(splits=0), "splits must be at least 1, got 0"),
        (dict(warps=3), "warps must be 1, 2, 4 or 8, got 3"),
    ],
)
def test_configs_that_cannot_be(changed, what):
    good = dict(block_m=16, block_n=16, quads=1, splits=1, warps=4)
    with pytest.raises(ValueError, match=f"AdditiveConfig.{what}"):
        AdditiveConfig(**(good | changed))


def test_one_that_cannot_run_says_why():
    layout = AdditiveLayout(books=1, entries=4, group=4, rows=16, cols=8)
    with pytest.raises(ValueError, match="implementation='triton' cannot run: it needs an NVIDIA GPU"):
        additive_matmul(*problem(1, layout), layout, implementation="triton")


def test_weights_of_few_rows_never_meet_shared_memory():
    """What the committed kernels have of it holds a step of 16 rows of activations, float32 ones in two parts."""
    result = read_result(RESULTS / "kernels_additive_matmul.json")
    assert result is not None
    rows = {(row["case"], row["target"]): row for row in result["rows"]}
    few = [(spec, target) for spec in SPECS for target in ("H100", "A100") if spec.m <= 16]
    assert len(few) > 20
    for spec, target in few:
        depth = choose_config(spec.m, spec.layout, jnp.dtype(spec.dtype)).quads * LANES * spec.layout.group
        (kernel,) = rows[spec.name, target]["kernels"]
        assert kernel["shared_bytes"] == 16 * depth * (8 if spec.dtype == "float32" else 2)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x, *weight = spec.arguments()
        out = jax.eval_shape(lambda *a, lay=spec.layout: additive_matmul(*a, lay, implementation="xla"), x, *weight)
        assert out.shape == (spec.m, spec.layout.cols) and out.dtype == x.dtype
        config = choose_config(spec.m, spec.layout, x.dtype)
        assert config.splits == 1 or spec.m <= 16
