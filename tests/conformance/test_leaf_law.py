"""The leaf law: what every compressed weight must do wherever an array could stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from compressjax.checkpoint import load, save
from compressjax.leaf import is_leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, nbits, size, take

from .row_types import COLS, ROWS, as_params
from .rows import LEAF_TYPES, LEAVES

pytestmark = pytest.mark.parametrize("row", as_params(LEAVES, lambda r: r.name))


def inputs(*lead):
    return jax.random.normal(jax.random.key(0), (*lead, ROWS))


def close(a, b, length=ROWS):
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=1e-5 * length, rtol=1e-4)


def test_shapes_and_sizes(row):
    w = row.make()
    assert is_leaf(w) and type(w) in LEAF_TYPES
    assert logical_shape(w) == (ROWS, COLS) == dense(w).shape
    assert dense(w).dtype == jnp.float32
    assert size(w) == ROWS * COLS
    assert nbits(w) == 8 * sum(a.nbytes for a in jax.tree.leaves(w))
    stacked = row.make(lead=(3,))
    assert logical_shape(stacked) == (3, ROWS, COLS) == dense(stacked).shape
    assert nbits(jax.eval_shape(lambda: w)) == nbits(w)


def test_matmul_is_the_dense_product(row):
    w = row.make()
    close(matmul(inputs(5), w), row.product(inputs(5), w))
    close(jax.jit(matmul)(inputs(2, 3), w), row.product(inputs(2, 3), w))
    assert matmul(inputs(5).astype(jnp.bfloat16), w).dtype == jnp.bfloat16


def test_optional_ops(row):
    w = row.make()
    x = jax.random.normal(jax.random.key(1), (4, COLS))
    if row.tied:
        close(matmul_t(x, w), x @ dense(w).T)
    if row.rows:
        ids = jnp.asarray([[0, ROWS - 1], [5, 5]])
        close(take(w, ids), dense(w)[ids])


def test_no_second_trace_for_another_weight(row):
    traces = []

    @jax.jit
    def f(x, w):
        traces.append(1)
        return matmul(x, w)

    f(inputs(2), row.make(seed=0))
    f(inputs(2), row.make(seed=1))
    assert len(traces) == 1


def test_gradient_of_inputs_is_the_dense_one(row):
    w = row.make()

    def loss(x, product):
        return jnp.sum(jnp.sin(0.01 * product(x)))

    close(jax.grad(loss)(inputs(3), lambda x: matmul(x, w)), jax.grad(loss)(inputs(3), lambda x: row.product(x, w)))


def test_scan_and_vmap_over_stacked_leaves(row):
    stacked = row.make(lead=(3,))
    x = inputs(3, 2)
    _, scanned = jax.lax.scan(lambda c, args: (c, matmul(*args)), 0, (x, stacked))
    layers = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(3)]
    expected = jnp.stack([row.product(x[i], layer) for i, layer in enumerate(layers)])
    close(scanned, expected)
    close(jax.vmap(matmul)(x, stacked), expected)
    close(dense(layers[1]), dense(stacked)[1])


def test_shard_map_with_replicated_weight(row):
    w = row.make()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(inputs(8), NamedSharding(mesh, P("data")))
    f = jax.shard_map(matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    close(jax.jit(f)(x, w), row.product(inputs(8), w))


def test_flatten_round_trip_and_hashable_metadata(row):
    w = row.make()
    leaves, structure = jax.tree.flatten(w)
    assert hash(structure) == hash(jax.tree.structure(row.make(seed=3)))
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(dense(again), dense(w))


def test_saved_bit_for_bit(row, tmp_path):
    tree = {"layer": {"kernel": row.make()}}
    save(tmp_path / "saved", tree)
    again = load(tmp_path / "saved")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_an_unplanned_operation_fails_and_never_densifies(row):
    w = row.make()
    with pytest.raises(TypeError):
        jnp.sum(w)
    with pytest.raises(TypeError):
        jnp.ones((1, ROWS)) @ w
