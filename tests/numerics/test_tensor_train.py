"""Tensor trains against SVDs of unfoldings in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.numerics.tensor_train import (
    balance,
    capped_bonds,
    count_numbers,
    decompose,
    interleave,
    largest_bond,
    round_train,
)


def matrix(rows=64, cols=64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, cols)), jnp.float32)


def rebuilt(cores, in_dims, out_dims):
    """The matrix by the definition: all products of slices, summed over the bonds."""
    state = np.ones((1, 1, 1))
    for core, i, o in zip(cores, in_dims, out_dims, strict=True):
        core = np.asarray(core, np.float64).reshape(state.shape[2], i, o, -1)
        grown = np.einsum("IOa,aiob->IiOob", state, core)
        state = grown.reshape(state.shape[0] * i, state.shape[1] * o, -1)
    return state[..., 0]


def tails(w, in_dims, out_dims, bonds):
    """Norm of what each unfolding of the matrix itself has past its bond."""
    sizes = [i * o for i, o in zip(in_dims, out_dims, strict=True)]
    flat = np.asarray(interleave(w, in_dims, out_dims), np.float64)
    found = []
    for k, bond in enumerate(bonds):
        values = np.linalg.svd(flat.reshape(int(np.prod(sizes[: k + 1])), -1), compute_uv=False)
        found.append(np.sqrt(np.sum(values[bond:] ** 2)))
    return np.array(found)


def test_interleaving_pairs_the_factors_of_both_sides():
    labels = jnp.arange(24 * 6, dtype=jnp.float32).reshape(24, 6)
    pairs = np.asarray(interleave(labels, (4, 6), (2, 3)))
    for i1, i2, o1, o2 in ((0, 0, 0, 0), (3, 1, 1, 2), (2, 5, 0, 1)):
        assert pairs[i1 * 2 + o1, i2 * 3 + o2] == labels[i1 * 6 + i2, o1 * 3 + o2]


@pytest.mark.parametrize(
    "in_dims, out_dims", [((12,), (10,)), ((3, 4), (2, 5)), ((2, 3, 2), (5, 2, 1)), ((2, 3, 2, 1), (1, 2, 1, 5))]
)
def test_full_bonds_restore_the_matrix(in_dims, out_dims):
    w = matrix(12, 10)
    bonds = capped_bonds(in_dims, out_dims, 10**6)
    train = decompose(w, in_dims, out_dims, bonds)
    np.testing.assert_allclose(rebuilt(train.cores, in_dims, out_dims), w, atol=1e-5)
    np.testing.assert_allclose(rebuilt(balance(train, in_dims, out_dims), in_dims, out_dims), w, atol=1e-5)
    assert sum(core.size for core in train.cores) == count_numbers(in_dims, out_dims, bonds)


def test_two_sites_lose_exactly_what_their_bond_leaves():
    w, dims = matrix(), ((8, 8), (8, 8))
    train = decompose(w, *dims, (20,))
    error = np.linalg.norm(np.asarray(w) - rebuilt(train.cores, *dims))
    np.testing.assert_allclose(error, tails(w, *dims, (20,))[0], rtol=1e-5)
    np.testing.assert_allclose(error**2, train.lost[0], rtol=1e-5)


def test_three_sites_lose_between_the_largest_tail_and_all_of_them():
    w, dims, bonds = matrix(), ((4, 4, 4), (4, 4, 4)), (9, 11)
    train = decompose(w, *dims, bonds)
    error = np.linalg.norm(np.asarray(w) - rebuilt(train.cores, *dims))
    cut = tails(w, *dims, bonds)
    assert cut.max() * (1 - 1e-6) <= error <= np.sqrt(np.sum(cut**2)) * (1 + 1e-6)
    np.testing.assert_allclose(error**2, sum(train.lost), rtol=1e-5)


def test_left_cores_are_orthonormal():
    dims = (4, 4, 4), (4, 4, 4)
    for core, o in zip(decompose(matrix(), *dims, (9, 11)).cores[:-1], dims[1], strict=False):
        flat = core.reshape(-1, core.shape[1] // o)
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)


def test_skewed_factors_are_the_plain_svd():
    w = matrix(12, 10)
    left, values, right = np.linalg.svd(np.asarray(w))
    train = decompose(w, (12, 1), (1, 10), (4,))
    np.testing.assert_allclose(rebuilt(train.cores, (12, 1), (1, 10)), left[:, :4] * values[:4] @ right[:4], atol=1e-5)


def test_kronecker_products_have_as_small_a_bond_as_they_have_terms():
    rng = np.random.default_rng(3)
    terms = [(rng.normal(size=(4, 3)), rng.normal(size=(5, 6))) for _ in range(2)]
    w = jnp.asarray(sum(np.kron(a, b) for a, b in terms), jnp.float32)
    assert np.linalg.matrix_rank(w) == 18  # a product of two thin matrices would need every number there is
    train = decompose(w, (4, 5), (3, 6), (2,))
    np.testing.assert_allclose(rebuilt(train.cores, (4, 5), (3, 6)), w, atol=1e-4)
    assert float(decompose(w, (4, 5), (3, 6), (1,)).lost[0]) > 1


def test_rounding_two_sites_is_truncating_the_matrix():
    w, dims = matrix(), ((8, 8), (8, 8))
    rounded = round_train(decompose(w, *dims, (20,)).cores, *dims, (7,))
    np.testing.assert_allclose(
        rebuilt(rounded.cores, *dims), rebuilt(decompose(w, *dims, (7,)).cores, *dims), atol=1e-4
    )


def test_rounding_three_sites_adds_its_own_loss_and_no_more():
    w, dims = matrix(), ((4, 4, 4), (4, 4, 4))
    first = decompose(w, *dims, (12, 12))
    second = round_train(balance(first, *dims), *dims, (6, 8))
    before, after = rebuilt(first.cores, *dims), rebuilt(second.cores, *dims)
    np.testing.assert_allclose(np.sum((before - after) ** 2), sum(second.lost), rtol=1e-4)
    whole = np.linalg.norm(np.asarray(w) - after)
    assert whole <= np.linalg.norm(np.asarray(w) - before) + np.linalg.norm(before - after) + 1e-4
    for core in second.cores[:-1]:
        flat = core.reshape(-1, core.shape[1] // 4)
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)


def test_balanced_cores_share_the_size_of_the_matrix():
    dims = (8, 8), (8, 8)
    train = decompose(1000 * matrix(), *dims, (16,))
    left, right = balance(train, *dims)
    np.testing.assert_allclose(jnp.linalg.norm(left), jnp.linalg.norm(right), rtol=1e-5)
    assert float(jnp.linalg.norm(train.cores[0])) < 0.01 * float(jnp.linalg.norm(train.cores[1]))


def test_an_empty_direction_does_no_harm():
    w = jnp.zeros((8, 6)).at[0, 0].set(1.0)
    train = decompose(w, (2, 4), (2, 3), (4,))
    np.testing.assert_allclose(rebuilt(balance(train, (2, 4), (2, 3)), (2, 4), (2, 3)), w, atol=1e-6)


def test_transposing_swaps_the_factors_and_keeps_the_spectra():
    w = matrix(24, 10)
    bonds = capped_bonds((4, 6), (2, 5), 10**6)
    here = decompose(w, (4, 6), (2, 5), bonds)
    there = decompose(w.T, (2, 5), (4, 6), bonds)
    np.testing.assert_allclose(here.values[0], there.values[0], rtol=1e-4, atol=1e-5)


def test_bonds_by_budget():
    dims = (6, 6, 6), (6, 6, 6)
    for budget in (72 + 36, 5000, 20_000):
        bond = largest_bond(*dims, budget)
        assert count_numbers(*dims, (bond,) * 2) <= budget < count_numbers(*dims, (bond + 1,) * 2)
    assert largest_bond(*dims, 50) == 0
    assert capped_bonds((2, 3, 50), (2, 3, 50), 10**6) == (4, 36)
    assert capped_bonds((50, 3, 2), (50, 3, 2), (1, 30)) == (1, 4)
