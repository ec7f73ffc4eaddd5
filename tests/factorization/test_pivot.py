import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.factorization import SVD, lowrank, pivot_factors
from compressjax.leaf import LowRank, PivotLowRank, low_rank
from compressjax.ops import dense, matmul, nbits
from compressjax.quantization import RTN

IN, OUT, RANK = 20, 14, 5


def factors(*lead, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(*lead, IN, RANK)), rng.normal(size=(*lead, RANK, OUT))
    return low_rank(jnp.asarray(left, dtype), jnp.asarray(right, dtype))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_the_same_weight_with_fewer_numbers(lead):
    w = factors(*lead)
    new = pivot_factors({"a": {"kernel": w}})["a"]["kernel"]
    assert isinstance(new, PivotLowRank)
    np.testing.assert_allclose(dense(new), dense(w), atol=1e-4)
    saved = 32 * RANK * RANK - 32 * OUT
    assert nbits(w) - nbits(new) == saved * int(np.prod(lead))


def test_columns_of_the_identity_are_outputs_as_they_are():
    new = pivot_factors({"kernel": factors()})["kernel"]
    plain = np.argsort(np.asarray(new.place))[:RANK]
    np.testing.assert_array_equal(dense(new)[:, plain], new.left)


def test_pivots_avoid_columns_that_say_nothing():
    """Leading columns that are zero, or copies of each other, cannot carry the identity."""
    w = factors()
    right = w.right.at[:, :4].set(0).at[:, 5].set(w.right[:, 4])
    new = pivot_factors({"kernel": low_rank(w.left, right)})["kernel"]
    np.testing.assert_allclose(dense(new), dense(low_rank(w.left, right)), atol=1e-4)
    assert float(jnp.abs(new.rest).max()) < 10


def test_a_factor_of_lower_rank_than_it_has_rows():
    w = factors()
    w = low_rank(w.left, w.right.at[4].set(w.right[3]))
    np.testing.assert_allclose(dense(pivot_factors({"kernel": w})["kernel"]), dense(w), atol=1e-4)


def test_what_rounding_moves_too_far_is_left_alone():
    half = {"kernel": factors(dtype=jnp.float16)}
    assert isinstance(pivot_factors(half, tolerance=1e-6)["kernel"], LowRank)
    assert isinstance(pivot_factors(half)["kernel"], PivotLowRank)


def test_a_factor_without_columns_to_spare_stays():
    w = low_rank(jnp.ones((IN, 3)), jnp.eye(3))
    assert pivot_factors({"kernel": w})["kernel"] is w


def test_after_a_method_the_network_says_the_same():
    w = jax.random.normal(jax.random.key(0), (2, IN, OUT))
    params = {"layers": {"kernel": w, "bias": jnp.zeros((2, OUT))}}
    thin = lowrank(params, SVD(rank=RANK, dtype="float32"))
    new = pivot_factors(thin)
    assert new["layers"]["bias"] is params["layers"]["bias"]
    x = jax.random.normal(jax.random.key(1), (7, IN))
    for layer in range(2):
        old, own = (jax.tree.map(lambda a, i=layer: a[i], t["layers"]["kernel"]) for t in (thin, new))
        np.testing.assert_allclose(matmul(x, own), matmul(x, old), atol=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="tolerance must be > 0, got 0"):
        pivot_factors({"kernel": factors()}, tolerance=0)
    thin = lowrank(
        {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}, SVD(rank=8, factors=RTN(bits=4, group=8))
    )
    with pytest.raises(ValueError, match="kernel: factors that are compressed themselves have no pivot form"):
        pivot_factors(thin)
