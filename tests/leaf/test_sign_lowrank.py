import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.pools import is_pooled, split_pools
from compressjax.leaf.sign_lowrank import (
    sign_lowrank,
    unpack_block,
    with_loaded,
)
from compressjax.ops import dense, logical_shape, matmul, nbits, take


def parts(rows, cols, *, levels=3, rank=2, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    plus = rng.integers(0, 2, (*lead, levels, rows, cols)).astype(bool)
    u = rng.normal(size=(*lead, levels, rows, rank)).astype(np.float16)
    v = rng.normal(size=(*lead, levels, rank, cols)).astype(np.float16)
    return plus, u, v


def by_hand(plus, u, v, count):
    terms = np.where(plus, 1.0, -1.0) * (u.astype(np.float64) @ v.astype(np.float64))
    return terms[..., :count, :, :].sum(axis=-3)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 5), (33, 7), (64, 2)])
@pytest.mark.parametrize("loaded", [0, 1, 3])
def test_the_weight_is_the_sum_of_the_loaded_blocks(rows, cols, loaded):
    plus, u, v = parts(rows, cols)
    w = with_loaded(sign_lowrank(*map(jnp.asarray, (plus, u, v))), loaded)
    np.testing.assert_allclose(dense(w), by_hand(plus, u, v, loaded), atol=1e-5)
    ids = jnp.asarray([[rows - 1], [0]])
    np.testing.assert_allclose(take(w, ids), dense(w)[ids], atol=1e-6)


def test_one_block_more_is_that_block():
    w = sign_lowrank(*map(jnp.asarray, parts(40, 8)))
    more, less = dense(with_loaded(w, 3)), dense(with_loaded(w, 2))
    np.testing.assert_allclose(more - less, unpack_block(w, 2), atol=1e-5)


def test_a_traced_number_of_blocks_is_the_static_slice():
    w = sign_lowrank(*map(jnp.asarray, parts(40, 8)))
    cut = dataclasses.replace(w, **{f: getattr(w, f)[:2] for f in ("signs", "u", "v", "slots")})
    traced = jax.jit(lambda n: dense(with_loaded(w, n)))(2)
    np.testing.assert_array_equal(traced, dense(with_loaded(cut, 2)))
    np.testing.assert_array_equal(dense(with_loaded(w, 99)), dense(w))


def test_blocks_that_are_not_loaded_are_not_read():
    plus, u, v = parts(40, 8)
    u[2] = np.nan
    w = with_loaded(sign_lowrank(*map(jnp.asarray, (plus, u, v))), 2)
    assert np.isfinite(dense(w)).all() and np.isfinite(take(w, jnp.asarray([1]))).all()


def test_the_input_scale_divides_inputs():
    pieces = [jnp.asarray(p) for p in parts(40, 8)]
    scale = jnp.asarray(np.random.default_rng(1).gamma(2.0, size=40) + 0.1, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (5, 40))
    plain, scaled = sign_lowrank(*pieces), sign_lowrank(*pieces, scale)
    np.testing.assert_allclose(matmul(x, scaled), matmul(x / scale[None], plain), rtol=1e-4, atol=1e-4)


def test_bits_are_one_per_sign_and_the_factors():
    w = sign_lowrank(*map(jnp.asarray, parts(64, 32, levels=2, rank=3)))
    assert nbits(w) == 2 * (64 * 32 + 16 * 3 * (64 + 32)) + 32 * (2 + 1)


def pooled(stacked, counts):
    """The blocks that ``counts`` names in one pool, shuffled."""
    layers, levels = stacked.slots.shape
    chosen = [(i, j) for i in range(layers) for j in range(counts[i])]
    places = np.random.default_rng(0).permutation(len(chosen))
    slots, pool = np.zeros((layers, levels), np.int32), [None] * len(chosen)
    for (i, j), place in zip(chosen, places, strict=True):
        slots[i, j] = place
        pool[place] = (i, j)
    at = tuple(np.asarray(pool).T)
    return dataclasses.replace(
        stacked,
        **{f: getattr(stacked, f)[at] for f in ("signs", "u", "v")},
        slots=jnp.asarray(slots),
        loaded=jnp.asarray(counts, jnp.int32),
    )


def test_a_pool_shared_by_layers_holds_no_block_more():
    scale = jnp.asarray(np.random.default_rng(2).gamma(2.0, size=(3, 40)) + 0.1, jnp.float16)
    stacked = sign_lowrank(*map(jnp.asarray, parts(40, 8, lead=(3,))), scale)
    w = pooled(stacked, [3, 1, 2])
    assert is_pooled(w) and not is_pooled(stacked)
    assert logical_shape(w) == (3, 40, 8)
    expected = dense(with_loaded(stacked, jnp.asarray([3, 1, 2])))
    np.testing.assert_allclose(dense(w), expected, atol=1e-6)
    block = 32 * 2 * 8 + 16 * 2 * 48  # 40 rows take two words
    assert nbits(w) == 6 * block + 3 * 32 * (3 + 1) + 3 * 40 * 16


def test_a_scan_takes_the_layers_of_a_split_pool():
    w = pooled(sign_lowrank(*map(jnp.asarray, parts(40, 8, lead=(3,)))), [3, 1, 2])
    x = jax.random.normal(jax.random.key(0), (3, 2, 40))
    layers, join = split_pools({"kernel": w, "bias": jnp.ones((3, 8))})

    def body(carry, inputs):
        params, one = inputs
        full = join(params)
        return carry, matmul(one, full["kernel"]) + full["bias"][None]

    out = jax.jit(lambda: jax.lax.scan(body, 0, (layers, x))[1])()
    np.testing.assert_allclose(out, jnp.einsum("lbi,lio->lbo", x, dense(w)) + 1, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    plus, u, v = (jnp.asarray(p) for p in parts(40, 8))
    with pytest.raises(ValueError, match=r"want u \[..., 40, k\] and v \[..., k, 8\], got"):
        sign_lowrank(plus, u, v[:, :1])
    with pytest.raises(ValueError, match=r"in_scale must have shape \(40,\), got \(8,\)"):
        sign_lowrank(plus, u, v, jnp.ones(8))
