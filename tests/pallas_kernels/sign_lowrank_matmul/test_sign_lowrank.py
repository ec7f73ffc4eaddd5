"""The product with sign and low-rank stacks in the interpreter against float64; any number loaded; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax import leaf
from compressjax.leaf.sign_lowrank import kernel_operands, with_loaded
from compressjax.ops import matmul, on_gpu
from pallas_kernels.sign_lowrank_matmul import SignBlocks, SignLayout, sign_lowrank_matmul
from pallas_kernels.sign_lowrank_matmul.reference import sign_lowrank_reference
from pallas_kernels.sign_lowrank_matmul.specs import SPECS

pytestmark = pytest.mark.kernels


def stack(rows, cols, *, blocks, rank, scaled=False, seed=0) -> leaf.SignLowRank:
    rng = np.random.default_rng(seed)
    plus = jnp.asarray(rng.random((blocks, rows, cols)) < 0.5)
    u, v = (
        jnp.asarray(rng.uniform(0, 1, shape), jnp.float32) for shape in ((blocks, rows, rank), (blocks, rank, cols))
    )
    scale = jnp.asarray(rng.uniform(0.5, 2, rows), jnp.float32) if scaled else None
    return leaf.sign_lowrank(plus, u, v, scale)


def test_forward_with_any_number_loaded(light_jit):
    """One program for every number of blocks, in an order of their own; blocks that are not loaded are not read."""
    w = stack(96, 40, blocks=3, rank=5)
    blocks, layout = kernel_operands(w)
    blocks = blocks._replace(slots=jnp.asarray([2, 0, 1], jnp.int32), u=blocks.u.at[1].set(jnp.nan))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 96)), jnp.float32)

    @light_jit
    def call(x, blocks):
        return sign_lowrank_matmul(x, blocks, layout, implementation="interpret")

    for loaded in (0, 1, 2):
        held = blocks._replace(loaded=jnp.int32(loaded))
        np.testing.assert_allclose(call(x, held), sign_lowrank_reference(x, held, layout), rtol=1e-4, atol=1e-4)


def test_a_single_block_of_rank_one(light_jit):
    """1-bit weights with a scale per input and one per output."""
    blocks, layout = kernel_operands(stack(64, 16, blocks=1, rank=1))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(17, 64)), jnp.float32)
    y = light_jit(lambda x, blocks: sign_lowrank_matmul(x, blocks, layout, implementation="interpret"))(x, blocks)
    np.testing.assert_allclose(y, sign_lowrank_reference(x, blocks, layout), rtol=1e-4, atol=1e-4)


def test_gradients_and_the_formula(light_jit):
    w = stack(32, 16, blocks=2, rank=2)
    blocks, layout = kernel_operands(w)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32)), jnp.float16)

    def loss(x, u, implementation):
        y = sign_lowrank_matmul(x, blocks._replace(u=u), layout, implementation=implementation)
        return jnp.sum(y.astype(jnp.float32)), y

    def both(x, u):
        return [jax.grad(loss, (0, 1), has_aux=True)(x, u, name) for name in ("interpret", "xla")]

    (grads, y), (same, formula) = light_jit(both)(x, blocks.u)
    assert y.dtype == jnp.float16
    want = sign_lowrank_reference(x, blocks, layout)
    np.testing.assert_allclose(y, want, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(formula, want, rtol=2e-2, atol=2e-2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), grads, same)


def test_the_leaf_takes_the_kernel(monkeypatch):
    """Where a GPU is the default device; the kernel is run by the interpreter here."""
    w = with_loaded(stack(32, 16, blocks=2, rank=2, scaled=True), 1)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 32)), jnp.float32)
    expected = matmul(x, w)

    def interpreted(*args, implementation):
        assert implementation == "triton"
        return sign_lowrank_matmul(*args, implementation="interpret")

    monkeypatch.setattr(on_gpu, "on_gpu", lambda: True)
    monkeypatch.setattr("pallas_kernels.sign_lowrank_matmul.sign_lowrank_matmul", interpreted)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cuda, default: cuda(*operands))
    np.testing.assert_allclose(matmul(x, w), expected, rtol=1e-4, atol=1e-4)


GOOD = dict(
    signs=((2, 2, 16), "uint32"),
    u=((2, 64, 3), "float16"),
    v=((2, 3, 16), "float16"),
    slots=((2,), "int32"),
    loaded=((), "int32"),
)


@pytest.mark.parametrize(
    "changed, error, what",
    [
        ({"signs": ((2, 3, 16), "uint32")}, ValueError, r"signs must be uint32 of shape \[places >= 1, 2, 16\]"),
        ({"u": ((2, 64, 3), "float32")}, TypeError, "of one dtype, got float32 and float16"),
        ({"v": ((2, 4, 16), "float16")}, ValueError, r"must have shapes \(2, 64, 3\) and \(2, 3, 16\)"),
        ({"slots": ((2,), "uint32")}, ValueError, "slots must be int32"),
        ({"loaded": ((1,), "int32")}, ValueError, r"loaded must be an int32 scalar, got int32 of shape \(1,\)"),
    ],
)
def test_arrays_that_do_not_fit(changed, error, what):
    layout = SignLayout(rank=3, tile=64, rows=64, cols=16)
    blocks = SignBlocks(**{name: jnp.zeros(*kind) for name, kind in (GOOD | changed).items()})
    with pytest.raises(error, match=f"sign_lowrank_matmul: .*{what}"):
        sign_lowrank_matmul(jnp.zeros((2, 64)), blocks, layout)


def test_activations_and_layouts_that_do_not_fit():
    layout = SignLayout(rank=3, tile=64, rows=64, cols=16)
    blocks = SignBlocks(**{name: jnp.zeros(*kind) for name, kind in GOOD.items()})
    with pytest.raises(ValueError, match=r"x must end in the 64 inputs .* got shape \(2, 60\)"):
        sign_lowrank_matmul(jnp.zeros((2, 60)), blocks, layout)
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32, got int32"):
        sign_lowrank_matmul(jnp.zeros((2, 64), jnp.int32), blocks, layout)
    with pytest.raises(ValueError, match="rank must be in 1..128, got 0"):
        SignLayout(rank=0, tile=64, rows=64, cols=16)


def test_shapes_of_specs_fit_their_layouts():
    for spec in SPECS:
        x, blocks = spec.arguments()
        layout = spec.layout
        jax.eval_shape(lambda x, b, lay=layout: sign_lowrank_matmul(x, SignBlocks(*b), lay), x, tuple(blocks))
