import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compressjax.training.eight_bit import StableEmbedding, StatePolicy, adam_8bit, stable_embedding_label_fn

LAYER = StableEmbedding(num_embeddings=64, features=32)


def variables():
    return LAYER.init(jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]


def test_rows_are_layer_normalised():
    params = variables()
    ids = jnp.asarray([[3, 5], [3, 63]])
    out = LAYER.apply({"params": params}, ids)
    rows = np.asarray(params["embedding"])[np.asarray(ids)]
    expected = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_table_is_xavier_uniform():
    table = variables()["embedding"]
    bound = np.sqrt(6 / (64 + 32))
    assert np.abs(table).max() <= bound and np.abs(table).max() > 0.95 * bound


def test_the_result_has_the_asked_dtype_and_ids_are_integers():
    narrow = StableEmbedding(num_embeddings=64, features=32, dtype=jnp.bfloat16)
    assert narrow.apply({"params": variables()}, jnp.asarray([1])).dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="ids must be integers, got float32"):
        LAYER.apply({"params": variables()}, jnp.asarray([1.0]))


@pytest.mark.standard_promotion("optax.adam mixes the dtypes of its moments")
def test_its_table_keeps_a_float32_state():
    params = {"embed": variables(), "dense": {"kernel": jnp.ones((64, 64))}}
    state = adam_8bit(1e-3, policy=StatePolicy(min_size=1)).init(params).inner[0]
    assert isinstance(state.mu["embed"]["embedding"], jax.Array)
    assert state.mu["dense"]["kernel"].codes.dtype == jnp.uint8


@pytest.mark.slow
@pytest.mark.standard_promotion("optax.adam mixes the dtypes of its moments")
def test_labels_split_the_optimizer():
    params = {"embed": variables(), "dense": {"kernel": jnp.ones((64, 64))}}
    labels = stable_embedding_label_fn(params)
    assert labels["embed"] == {"embedding": "32bit", "norm": {"bias": "8bit", "scale": "8bit"}}
    tx = optax.multi_transform(
        {"8bit": adam_8bit(1e-3, policy=StatePolicy(min_size=1)), "32bit": optax.adam(1e-3)}, stable_embedding_label_fn
    )
    state = jax.jit(tx.init)(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    np.testing.assert_allclose(updates["dense"]["kernel"], -1e-3, rtol=1e-5)
