"""The product with stored groups in the interpreter against float64, its gradients, and reached by the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.group_sparse import kernel_operands, kernel_refusal, pack_group_sparse
from compressjax.ops import dense, matmul, on_gpu
from pallas_kernels.group_sparse_matmul import GroupSparseLayout, group_sparse_matmul
from pallas_kernels.group_sparse_matmul.config import GroupSparseConfig
from pallas_kernels.group_sparse_matmul.reference import group_sparse_matrix, group_sparse_reference
from pallas_kernels.group_sparse_matmul.specs import SPECS

pytestmark = pytest.mark.kernels

SMALL = GroupSparseConfig(block_n=16, lanes=4, warps=4, stages=2)


def leaf(layout, *, bits=4, group=16, rows=128, cols=40, zero_kind="int"):
    rng, groups = np.random.default_rng(0), rows // group
    codes = jnp.asarray(rng.integers(0, 2**bits, (rows, cols)))
    scale = jnp.asarray(rng.uniform(0.5, 1, (groups, cols)) / 2**bits, jnp.float16)
    zero = jnp.asarray(rng.integers(0, 2**bits, (groups, cols)), jnp.float16 if zero_kind == "real" else jnp.int32)
    if layout == "ell":
        kept = np.sort(np.argsort(rng.random((groups, cols)), axis=0)[: groups // 2], axis=0)
    else:
        chosen = rng.random((cols, groups)) < 0.4
        chosen[3], chosen[5] = False, True  # an output with nothing stored, and one with everything
        kept = np.flatnonzero(chosen)
    return pack_group_sparse(
        codes, scale, zero, jnp.asarray(kept), bits=bits, group=group, layout=layout, zero_kind=zero_kind
    )


CASES = {  # the leaf, rows of activations, dtype
    "ell": (dict(layout="ell"), 2, "float32"),
    "bsr": (dict(layout="bsr"), 1, "float32"),
    "bsr-2-bits-real": (dict(layout="bsr", bits=2, cols=24, zero_kind="real"), 3, "bfloat16"),
    "ell-8-bits": (dict(layout="ell", bits=8, group=8, cols=16), 1, "float16"),
}


@pytest.mark.parametrize("name", CASES)
def test_products(light_jit, name):
    fields, m, dtype = CASES[name]
    w = leaf(**fields)
    stored, layout = kernel_operands(w)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(m, 128)), dtype)
    np.testing.assert_allclose(group_sparse_matrix(stored, layout), dense(w), rtol=1e-6)

    def both(x):
        return [group_sparse_matmul(x, stored, layout, implementation=i, config=SMALL) for i in ("interpret", "xla")]

    wanted = group_sparse_reference(x, stored, layout)
    for got in light_jit(both)(x):
        assert got.dtype == x.dtype
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=eps, atol=1e-5)


def test_gradients(light_jit):
    w = leaf("bsr", cols=16, zero_kind="real")
    stored, layout = kernel_operands(w)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 128)), jnp.float32)

    def loss(x, scale, implementation):
        y = group_sparse_matmul(x, stored._replace(scale=scale), layout, implementation=implementation, config=SMALL)
        return jnp.sum(jnp.sin(y))

    def both(x, scale):
        return [jax.grad(loss, (0, 1))(x, scale, name) for name in ("interpret", "xla")]

    ours, formula = light_jit(both)(x, stored.scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours, formula)
    slope = np.cos(group_sparse_reference(x, stored, layout))
    np.testing.assert_allclose(ours[0], slope @ group_sparse_matrix(stored, layout).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["ell", "bsr"])
def test_the_leaf_takes_the_kernel(monkeypatch, layout):
    """Where a GPU is the default device; the kernel is stood in for by its formula here."""
    w = leaf(layout)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 128)), jnp.float32)
    expected, calls = matmul(x, w), []

    def stand_in(*args, implementation):
        assert implementation == "triton"
        calls.append(args[0].shape)
        return group_sparse_matmul(*args, implementation="xla")

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.group_sparse_matmul.group_sparse_matmul", stand_in)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    np.testing.assert_allclose(matmul(x, w), expected, rtol=1e-4, atol=1e-4)
    assert calls == [(2, 1, 128)]
    assert "dense weight" in str(kernel_refusal(jnp.zeros((9, 128)), w))
    assert "5 bits" in str(kernel_refusal(x, leaf(layout, bits=5, group=32)))
    assert "stack of layers" in str(kernel_refusal(x, jax.tree.map(lambda a: jnp.stack([a, a]), w)))


@pytest.mark.parametrize(
    "changed, what",
    [
        (dict(bits=3), "bits must be 2, 4 or 8, got 3"),
        (dict(group=24), "group must be one of .* got 24"),
        (dict(bits=2, group=8), "fill words of 32 bits, got 8"),
        (dict(rows=120), "group=16 must divide the 120 rows"),
        (dict(kept=0), "kept must be at least 1, got 0"),
        (dict(zero_kind="none"), "zero_kind must be 'int' or 'real', got 'none'"),
    ],
)
def test_layouts_that_do_not_fit(changed, what):
    good = dict(bits=4, group=16, rows=128, cols=40, kept=4, equal=True, zero_kind="int")
    with pytest.raises(ValueError, match=f"group_sparse_matmul: .*{what}"):
        GroupSparseLayout(**(good | changed))


def test_arrays_that_do_not_fit():
    stored, layout = kernel_operands(leaf("bsr"))
    x = jnp.zeros((2, 128))
    with pytest.raises(ValueError, match=r"x must end in the 128 inputs .* got shape \(2, 64\)"):
        group_sparse_matmul(x[:, :64], stored, layout)
    with pytest.raises(ValueError, match=r"scale must have shape .* got \(3,\)"):
        group_sparse_matmul(x, stored._replace(scale=jnp.zeros(3)), layout)
    with pytest.raises(TypeError, match="index must be uint8 or uint16, got int32"):
        group_sparse_matmul(x, stored._replace(index=stored.index.astype(jnp.int32)), layout)
    with pytest.raises(ValueError, match="row_ptr goes with layout 'bsr'"):
        group_sparse_matmul(x, stored._replace(row_ptr=None), layout)
    with pytest.raises(ValueError, match=r"row_ptr must be int32 of shape \(41,\)"):
        group_sparse_matmul(x, stored._replace(row_ptr=jnp.zeros(40, jnp.int32)), layout)
    with pytest.raises(ValueError, match="9 rows, the kernel takes 8"):
        group_sparse_matmul(jnp.zeros((9, 128)), stored, layout, implementation="interpret")


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x, stored = spec.arguments()
        out = jax.eval_shape(lambda x, s, lay=spec.layout: group_sparse_matmul(x, s, lay), x, stored)
        assert out.shape == (spec.m, spec.layout.cols) and out.dtype == x.dtype
