"""Group-sparse leaves against a plain loop, in both layouts, and their exact size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.group_sparse import gemv, kept_groups, pack_group_sparse
from compressjax.ops import dense, matmul, nbits


def arrays(rows, cols, bits, group, seed=0):
    rng = np.random.default_rng(seed)
    groups = rows // group
    codes = rng.integers(0, 2**bits, (rows, cols))
    scale = rng.normal(size=(groups, cols)).astype(np.float16)
    zero = rng.integers(0, 2**bits, (groups, cols))
    return codes, scale, zero


def by_loop(codes, scale, zero, mask, group):
    out = np.zeros(codes.shape, np.float32)
    for g, o in zip(*np.nonzero(mask), strict=True):
        rows = slice(g * group, (g + 1) * group)
        out[rows, o] = np.float32(scale[g, o]) * (codes[rows, o] - zero[g, o]).astype(np.float32)
    return out


def kept_of(mask, layout):
    groups, cols = mask.shape
    if layout == "bsr":
        return jnp.asarray([o * groups + g for o in range(cols) for g in range(groups) if mask[g, o]], jnp.int32)
    return jnp.asarray(np.stack([np.nonzero(mask[:, o])[0] for o in range(cols)], axis=1), jnp.int32)


jitted = jax.jit(pack_group_sparse, static_argnames=("bits", "group", "layout", "zero_kind"))


kept_by, by_groups = jax.jit(kept_groups), jax.jit(gemv)


def pack(parts, mask, layout, **options):
    return jitted(*(jnp.asarray(a) for a in parts), kept_of(mask, layout), layout=layout, **options)


def even_mask(groups, cols, kept, seed=0):
    order = np.argsort(np.random.default_rng(seed).random((groups, cols)), axis=0)
    return order < kept


@pytest.mark.parametrize("bits, group", [(4, 16), (3, 32), (8, 12)])
def test_dense_is_the_loops(bits, group):
    parts = arrays(4 * group, 6, bits, group)
    mask = even_mask(4, 6, 2)
    for layout in ("ell", "bsr"):
        w = pack(parts, mask, layout, bits=bits, group=group)
        assert w.codes.shape[0] == group * bits // 32
        np.testing.assert_array_equal(dense(w), by_loop(*parts, mask, group))
        np.testing.assert_array_equal(kept_by(w), mask)


MASKS = {
    "empty rows": np.array([[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]], bool),
    "all kept": np.ones((3, 4), bool),
    "one group each": np.eye(3, 4, dtype=bool) | np.array([[0, 0, 0, 1], [0] * 4, [0] * 4], bool),
    "one in all": np.array([[0] * 4, [0, 0, 1, 0], [0] * 4], bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_rows_of_any_length(name):
    parts, mask = arrays(48, 4, 4, 16), MASKS[name]
    w = pack(parts, mask, "bsr", bits=4, group=16)
    expected = by_loop(*parts, mask, 16)
    np.testing.assert_array_equal(dense(w), expected)
    np.testing.assert_array_equal(np.diff(w.row_ptr), mask.sum(0))
    x = jax.random.normal(jax.random.key(0), (48,))
    np.testing.assert_allclose(by_groups(x, w), np.asarray(x) @ expected, rtol=1e-4, atol=1e-4)


def test_layouts_agree_and_repeat_bit_for_bit():
    parts, mask = arrays(96, 8, 4, 16), even_mask(6, 8, 3)
    x = jax.random.normal(jax.random.key(0), (1, 96))
    ell, bsr = (pack(parts, mask, layout, bits=4, group=16) for layout in ("ell", "bsr"))
    np.testing.assert_array_equal(dense(ell), dense(bsr))
    product = jax.jit(matmul)
    np.testing.assert_allclose(product(x, ell), product(x, bsr), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(product(x, bsr), product(x, bsr))


def test_a_stored_group_of_zeros_is_not_an_absent_one():
    codes, scale, zero = arrays(32, 2, 4, 16)
    codes[:16, 0] = zero[0, 0]
    w = pack((codes, scale, zero), np.array([[1, 1], [1, 0]], bool), "bsr", bits=4, group=16)
    assert not np.any(dense(w)[:16, 0])
    assert w.index.shape == (3,)


@pytest.mark.parametrize("groups, dtype", [(256, jnp.uint8), (257, jnp.uint16)])
def test_index_grows_with_the_number_of_groups(groups, dtype):
    parts = arrays(groups * 8, 2, 4, 8)
    mask = np.zeros((groups, 2), bool)
    mask[[0, -1]] = True
    w = pack(parts, mask, "ell", bits=4, group=8)
    assert w.index.dtype == dtype
    np.testing.assert_array_equal(dense(w), by_loop(*parts, mask, 8))


def test_bits_per_weight_are_those_of_the_formula():
    """``(1-p) (b + 16/G + b/G + index/G)``, and in layout "bsr" a row pointer of 32 bits per output and one more."""
    rows, cols = 576, 192
    parts, mask = arrays(rows, cols, 4, 16), even_mask(36, cols, 18)
    ell, bsr = (nbits(pack(parts, mask, layout, bits=4, group=16)) for layout in ("ell", "bsr"))
    assert ell / (rows * cols) == 0.5 * (4 + 16 / 16 + 4 / 16 + 8 / 16) == 2.875
    assert bsr - ell == 32 * (cols + 1)


@pytest.mark.parametrize("layout", ["ell", "bsr"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_product_needs_no_more_than_one_dense_layer(layout, rows):
    parts, mask = arrays(256, 64, 4, 16), even_mask(16, 64, 8)
    w = pack(parts, mask, layout, bits=4, group=16)
    memory = jax.jit(matmul).lower(jnp.ones((rows, 256)), w).compile().memory_analysis()
    slack = 16 * 64 * 4 * (3 + 2) + 512  # place, scale, zero and two words of all groups, and counters
    assert memory.temp_size_in_bytes <= 256 * 64 * 4 + slack


def test_gradient_of_scales_is_the_sum_over_the_group():
    """``dL/ds`` of a stored group is the sum over it of ``dL/dw (q - z)``."""
    parts, mask = arrays(32, 4, 4, 16), MASKS["all kept"][:2]
    w = pack(parts, mask, "bsr", bits=4, group=16)
    x = jax.random.normal(jax.random.key(0), (5, 32))

    def loss(scale):
        return jnp.sum(jnp.sin(matmul(x, dataclasses.replace(w, scale=scale))))

    scale = w.scale.astype(jnp.float32)
    by_weight = jax.grad(lambda d: jnp.sum(jnp.sin(x @ d)))(dense(w))
    codes, _, zero = parts
    expected = np.asarray(by_weight) * (codes - np.repeat(zero, 16, axis=0))
    expected = expected.reshape(2, 16, 4).sum(1).T.reshape(-1)
    np.testing.assert_allclose(jax.grad(loss)(scale), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rows, bits, group, match",
    [
        (40, 4, 16, "group=16 must divide the 40 inputs"),
        (36, 4, 12, "group \\* bits must be a multiple of 32"),
        (32, 9, 16, "bits must be in 2..8, got 9"),
    ],
)
def test_refuses_groups_that_cannot_be_packed(rows, bits, group, match):
    groups = rows // group
    like = jnp.zeros((groups, 2))
    with pytest.raises(ValueError, match=match):
        pack_group_sparse(
            jnp.zeros((rows, 2), jnp.int32),
            like,
            like,
            jnp.zeros((1, 2), jnp.int32),
            bits=bits,
            group=group,
            layout="ell",
        )


def test_refuses_shapes_that_do_not_fit():
    codes, like = jnp.zeros((32, 2), jnp.int32), jnp.zeros((2, 2))
    good = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="scale and zero must be"):
        pack_group_sparse(codes, like[:1], like, good, bits=4, group=16, layout="ell")
    with pytest.raises(ValueError, match="kept must be"):
        pack_group_sparse(codes, like, like, good, bits=4, group=16, layout="bsr")
    with pytest.raises(ValueError, match="layout must be 'ell' or 'bsr'"):
        pack_group_sparse(codes, like, like, good, bits=4, group=16, layout="csr")
    with pytest.raises(ValueError, match="zero_kind must be"):
        pack_group_sparse(codes, like, like, good, bits=4, group=16, layout="ell", zero_kind="none")
    with pytest.raises(ValueError, match="at most 65536 groups"):
        pack_group_sparse(
            jnp.zeros((8 * 65537, 1), jnp.int32),
            jnp.zeros((65537, 1)),
            jnp.zeros((65537, 1)),
            jnp.zeros((1, 1), jnp.int32),
            bits=4,
            group=8,
            layout="ell",
        )
