"""The TensorTrain leaf: both ways of multiplying, gradients, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import TensorTrain, bonds_of, tensor_train
from compressjax.leaf.tensor_train import contracts
from compressjax.ops import dense, matmul, matmul_t, take


def chain(in_dims, out_dims, bonds, shape=None, seed=0) -> TensorTrain:
    rng = np.random.default_rng(seed)
    ends = (1, *bonds, 1)
    cores = [
        jnp.asarray(rng.normal(size=(a * i, o * b)), jnp.float32)
        for a, i, o, b in zip(ends, in_dims, out_dims, ends[1:], strict=False)
    ]
    return tensor_train(cores, in_dims, out_dims, shape)


# One that is contracted core by core whatever the rows, and one that is cheaper built first.
THIN, FAT = chain((4, 3, 2), (2, 3, 5), (2, 2), (23, 29)), chain((4, 3, 2), (2, 3, 5), (8, 10), (23, 29))


def entry(w, row, col):
    """One entry by the definition: a product of small matrices."""
    i, o = np.unravel_index(row, w.in_dims), np.unravel_index(col, w.out_dims)
    state = np.ones((1, 1))
    for k, core in enumerate(w.cores):
        bond = state.shape[1]
        state = state @ np.asarray(core).reshape(bond, w.in_dims[k], w.out_dims[k], -1)[:, i[k], o[k]]
    return state[0, 0]


@pytest.mark.parametrize("w", [THIN, FAT], ids=["thin", "fat"])
def test_entries_are_products_of_slices(w):
    built = dense(w)
    assert built.shape == (23, 29)
    for row, col in ((0, 0), (22, 28), (7, 16), (13, 2)):
        assert float(built[row, col]) == pytest.approx(entry(w, row, col), rel=1e-4, abs=1e-4)


def test_the_cheaper_way_is_taken_and_both_agree():
    rows, ids = 50, jnp.asarray([[0, 22], [5, 5]])
    assert contracts(THIN, rows) and not contracts(FAT, rows)
    for w in (THIN, FAT):
        x, y = jax.random.normal(jax.random.key(0), (rows, 23)), jax.random.normal(jax.random.key(1), (rows, 29))
        jaxpr = str(jax.make_jaxpr(matmul)(x, w))
        assert ("f32[23,29]" in jaxpr) != contracts(w, rows)
        found = jax.jit(lambda w, x=x, y=y: (matmul(x, w), matmul_t(y, w), take(w, ids), dense(w)))(w)
        forward, backward, rows_of, built = map(np.asarray, found)
        np.testing.assert_allclose(forward, x @ built, atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(backward, y @ built.T, atol=1e-3, rtol=1e-4)
        np.testing.assert_allclose(rows_of, built[np.asarray(ids)], atol=1e-4)


def test_a_single_core_is_the_matrix():
    w = chain((6,), (5,), ())
    assert bonds_of(w) == ()
    x = jnp.ones((2, 6))
    np.testing.assert_allclose(matmul(x, w), x @ w.cores[0], rtol=1e-6)


@pytest.mark.parametrize("w", [THIN, FAT], ids=["thin", "fat"])
def test_gradients_of_cores_are_those_through_the_dense_weight(w):
    x = jax.random.normal(jax.random.key(0), (7, 23)) / 10

    @jax.jit
    def both(w):
        ways = (matmul, lambda x, w: x @ dense(w))
        return [jax.grad(lambda w, product=product: jnp.sum(jnp.sin(product(x, w))))(w) for product in ways]

    ours, theirs = both(w)
    for a, b in zip(ours.cores, theirs.cores, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3)


def test_sixteen_bit_activations_stay_close():
    x = jax.random.normal(jax.random.key(0), (9, 23))
    narrow = matmul(x.astype(jnp.bfloat16), THIN)
    wide = x @ dense(THIN)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), wide, atol=4 * 2**-8 * float(jnp.abs(wide).max()))


def test_refusals_name_what_does_not_fit():
    a, b = jnp.ones((2, 3 * 4)), jnp.ones((4 * 3, 2))
    good = tensor_train([a, b], (2, 3), (3, 2))
    assert bonds_of(good) == (4,)
    with pytest.raises(ValueError, match="must be as many, got 2"):
        tensor_train([a, b], (2, 3), (6,))
    with pytest.raises(ValueError, match="core 1 must be"):
        tensor_train([a, b], (2, 4), (3, 2))
    with pytest.raises(ValueError, match="the last core must end in 1 columns"):
        tensor_train([a, b], (2, 3), (3, 1))
    with pytest.raises(ValueError, match=r"at most \(6, 6\), got \(7, 6\)"):
        tensor_train([a, b], (2, 3), (3, 2), (7, 6))
    with pytest.raises(ValueError, match="must be >= 1"):
        tensor_train([a, b], (2, 0), (3, 2))
