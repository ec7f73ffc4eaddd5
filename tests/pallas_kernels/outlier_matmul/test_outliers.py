"""Packed product and outliers in one launch, in the interpreter, against float64; refusals; the leaves that take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import leaf
from compressjax.leaf.affine import kernel_operands as affine_operands
from compressjax.leaf.codebook import kernel_operands as codebook_operands
from compressjax.ops import dense, matmul, on_gpu
from pallas_kernels.outlier_matmul import Outliers, api, outlier_matmul
from pallas_kernels.outlier_matmul.reference import outlier_reference
from pallas_kernels.outlier_matmul.specs import SPECS
from pallas_kernels.product_config import ProductConfig

pytestmark = pytest.mark.kernels


def affine_base(rows, cols, seed=0):
    rng = np.random.default_rng(seed)
    scale = jnp.asarray(rng.uniform(0.05, 0.2, (rows // 32, cols)), jnp.float32)
    codes = jnp.asarray(rng.integers(0, 16, (rows, cols)))
    return leaf.pack_affine(codes, scale, None, bits=4, group=32, zero_kind="none")


def codebook_base(rows, cols):
    rng = np.random.default_rng(0)
    tables = jnp.asarray(rng.normal(size=(1, 8, cols)), jnp.float32)
    return leaf.pack_codebook(jnp.asarray(rng.integers(0, 8, (rows, cols))), tables, group=rows)


def apart(rows, cols, *, spare=3, seed=1) -> leaf.Outliers:
    """Outliers of which some outputs have none and one has many, and empty slots."""
    rng = np.random.default_rng(seed)
    where = rng.random((rows, cols)) < 0.05
    where[:, 0], where[:, cols - 1] = False, True
    values = jnp.asarray(rng.normal(size=(rows, cols)), jnp.float32)
    return leaf.pack_outliers(jnp.asarray(where), values, int(where.sum()) + spare)


def arrays(w: leaf.Outliers) -> Outliers:
    return Outliers(w.starts, w.inputs, w.values)


def test_with_an_affine_base_and_splits(light_jit):
    rows, cols = 256, 33
    base, sparse = affine_base(rows, cols), apart(rows, cols)
    weights, layout = affine_operands(base)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, rows)), jnp.float32)
    # Two splits: the outliers must be added by one of them only.
    config = ProductConfig(block_m=16, block_n=16, tiles=1, splits=2, warps=2, stages=2)
    layout_tile = leaf.pack_affine(
        leaf.unpack_codes(base), base.scale, None, bits=4, group=32, zero_kind="none", tile=128
    )
    weights, layout = affine_operands(layout_tile)

    @light_jit
    def call(x, weights, outliers):
        return outlier_matmul(x, weights, outliers, layout, implementation="interpret", config=config)

    y = call(x, weights, arrays(sparse))
    want = outlier_reference(x, np.asarray(dense(base), np.float64), arrays(sparse))
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(want, x @ (dense(base) + dense(sparse)), rtol=1e-4, atol=1e-4)


def test_with_tables_and_activations_in_another_order(light_jit):
    rows, cols = 64, 16
    base, sparse = codebook_base(rows, cols), apart(rows, cols)
    weights, layout = codebook_operands(base)
    rng = np.random.default_rng(2)
    x, other = (jnp.asarray(rng.normal(size=(17, rows)), jnp.float16) for _ in range(2))

    @light_jit
    def call(x, other):
        return outlier_matmul(x, weights, arrays(sparse), layout, x_outliers=other, implementation="interpret")

    nothing = np.zeros((rows, cols))
    want = np.asarray(x, np.float64) @ np.asarray(dense(base), np.float64)
    want = want + outlier_reference(other, nothing, arrays(sparse))
    assert np.all(np.abs(np.asarray(call(x, other), np.float64) - want) <= 2.0**-9 * (rows + np.abs(want)))


def test_gradients_reach_the_outliers(light_jit):
    rows, cols = 64, 16
    base, sparse = affine_base(rows, cols), apart(rows, cols)
    weights, layout = affine_operands(base)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, rows)), jnp.float32)

    @light_jit
    def grads(x, values):
        def loss(x, values):
            outliers = Outliers(sparse.starts, sparse.inputs, values)
            return jnp.sum(outlier_matmul(x, weights, outliers, layout, implementation="interpret"))

        return jax.grad(loss, argnums=(0, 1))(x, values)

    x_bar, values_bar = grads(x, sparse.values)
    np.testing.assert_allclose(x_bar[0], jnp.sum(dense(base) + dense(sparse), axis=1), rtol=1e-4, atol=1e-4)
    held = int(sparse.starts[-1])
    np.testing.assert_allclose(values_bar[:held], jnp.sum(x, axis=0)[sparse.inputs[:held].astype(jnp.int32)], rtol=1e-5)
    np.testing.assert_array_equal(values_bar[held:], 0)


@pytest.mark.parametrize("kind", ["affine", "codebook", "two-level"])
def test_a_sum_takes_one_kernel_and_equals_its_parts(monkeypatch, kind):
    """Where a GPU is the default device; the kernel is run by the interpreter here."""
    rows, cols = 64, 32
    sparse = apart(rows, cols)
    rng = np.random.default_rng(3)
    if kind == "two-level":
        codes = jnp.asarray(rng.integers(0, 8, (rows, cols)))
        base = leaf.pack_two_level(
            codes,
            jnp.asarray(rng.integers(1, 8, (2, cols))),
            jnp.asarray(rng.integers(0, 8, (2, cols))),
            (jnp.full((2, 2), 0.1), jnp.full((2, 2), 0.5)),
            (jnp.full((2, 2), 0.7), jnp.full((2, 2), 0.2)),
            bits=3,
            scale_bits=3,
            zero_bits=3,
            group=32,
            stat_group=16,
            perm=jnp.asarray(rng.permutation(rows)),
        )
    else:
        base = {"affine": affine_base, "codebook": codebook_base}[kind](rows, cols)
    w = leaf.add(base, sparse)
    x = jnp.asarray(rng.normal(size=(2, rows)), jnp.float32)
    expected = matmul(x, w)

    def interpreted(*args, implementation, **kwargs):
        assert implementation == "triton"
        return outlier_matmul(*args, implementation="interpret", **kwargs)

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.outlier_matmul.outlier_matmul", interpreted)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    np.testing.assert_allclose(matmul(x, w), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed, error, what",
    [
        (
            {"starts": ((16,), "int32")},
            ValueError,
            r"starts must be int32 of shape \(17,\), got int32 of .*16",
        ),
        ({"inputs": ((5,), "uint8")}, TypeError, "inputs must be uint16 or int32, got uint8"),
        ({"inputs": ((4,), "uint16")}, ValueError, r"of one shape \[capacity >= 1\], got \(4,\) and \(5,\)"),
        ({"values": ((5,), "int32")}, TypeError, "values must be floating point, got int32"),
    ],
)
def test_outliers_that_do_not_fit(changed, error, what):
    base, layout = affine_operands(affine_base(64, 16))
    shapes = dict(starts=((17,), "int32"), inputs=((5,), "uint16"), values=((5,), "float16")) | changed
    outliers = Outliers(**{name: jnp.zeros(*kind) for name, kind in shapes.items()})
    with pytest.raises(error, match=f"outlier_matmul: .*{what}"):
        outlier_matmul(jnp.zeros((2, 64)), base, outliers, layout)


def test_a_base_that_does_not_fit():
    base, layout = affine_operands(affine_base(64, 16))
    outliers = Outliers(jnp.zeros(17, jnp.int32), jnp.zeros(5, jnp.uint16), jnp.zeros(5, jnp.float16))
    with pytest.raises(ValueError, match="base must be 3 arrays for a AffineLayout, got 2"):
        outlier_matmul(jnp.zeros((2, 64)), base[:2], outliers, layout)
    with pytest.raises(ValueError, match="x_outliers must be float32 of the shape of x"):
        outlier_matmul(jnp.zeros((2, 64)), base, outliers, layout, x_outliers=jnp.zeros((1, 64)))


def test_shapes_of_specs_fit(monkeypatch):
    monkeypatch.setattr(api, "needs_gpu", lambda: "no")
    for spec in SPECS:
        x, base, outliers = spec.arguments()
        layout = spec.base.layout
        jax.eval_shape(lambda x, b, o, lay=layout: outlier_matmul(x, b, Outliers(*o), lay), x, base, tuple(outliers))
