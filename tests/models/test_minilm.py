import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.models import Bert, BertConfig, blockwise, mean_pool

CFG = BertConfig(
    vocab_size=53, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=4, max_positions=16, type_vocab_size=2
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 53, (2, 10)), jnp.int32)
MASK = jnp.arange(10)[None] < jnp.array([[10], [6]])


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(Bert(CFG).init, jax.random.key(0), TOKENS)["params"]
    draw = np.random.default_rng(1).standard_normal
    return jax.tree.map(lambda s: jnp.asarray(0.4 * draw(s.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def hidden(params):
    return jax.jit(lambda tokens, mask: Bert(CFG).apply({"params": params}, tokens, mask))


def test_parameters():
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(Bert(CFG).init, jax.random.key(0), TOKENS)["params"])
    norm = {"scale": (3, 24), "bias": (3, 24)}
    square = {"kernel": (3, 24, 24), "bias": (3, 24)}
    assert shapes == {
        "embeddings": {
            "word": {"embedding": (53, 24)},
            "position": {"embedding": (16, 24)},
            "token_type": {"embedding": (2, 24)},
            "norm": {"scale": (24,), "bias": (24,)},
        },
        "blocks": {
            "attn": {"q": square, "k": square, "v": square, "o": square},
            "attn_norm": norm,
            "mlp": {
                "up": {"kernel": (3, 24, 40), "bias": (3, 40)},
                "down": {"kernel": (3, 40, 24), "bias": (3, 24)},
            },
            "mlp_norm": norm,
        },
    }


def test_stages_make_up_the_model(params, hidden):
    blocks = blockwise(CFG)
    x = jax.jit(blocks.embed)(params, TOKENS)
    for layer in range(blocks.num_blocks):
        block, carry = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"]), {"x": x, "mask": MASK}
        for stage in blocks.stages:
            inputs, carry = jax.jit(stage.advance)(block, carry)
            for path in stage.weights:
                part, name, _ = path.split("/")
                assert inputs.shape[-1] == block[part][name]["kernel"].shape[0]
        x = jax.jit(blocks.finish)(block, carry)
    np.testing.assert_allclose(blocks.head(params, x)[MASK], hidden(TOKENS, MASK)[MASK], atol=1e-5)


def test_padding_changes_no_real_token(hidden):
    padded = hidden(TOKENS.at[1, 6:].set(3), MASK)
    np.testing.assert_array_equal(padded[1, :6], hidden(TOKENS, MASK)[1, :6])
    np.testing.assert_allclose(padded[1, :6], hidden(TOKENS[1:, :6], None)[0], atol=2e-5)


def test_attention_looks_both_ways(hidden):
    moved = np.abs(hidden(TOKENS.at[0, 4].add(1) % 53, MASK) - hidden(TOKENS, MASK))[0].max(-1)
    assert (moved > 1e-4).all()


def test_mean_pool_is_the_unit_mean_of_real_tokens():
    states = jnp.asarray(np.random.default_rng(0).standard_normal((2, 10, 5)), jnp.float32)
    pooled = mean_pool(states, MASK)
    want = np.stack([states[0].mean(0), states[1, :6].mean(0)])
    np.testing.assert_allclose(pooled, want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(mean_pool(states, jnp.zeros((2, 10), bool)), np.zeros((2, 5)))


def test_refusals():
    with pytest.raises(ValueError, match="num_heads=5 does not divide hidden_size=24"):
        BertConfig(hidden_size=24, num_heads=5)
    with pytest.raises(ValueError, match="num_layers must be >= 1"):
        BertConfig(num_layers=0)
    with pytest.raises(ValueError, match="17 tokens exceed the context of 16"):
        Bert(CFG).init(jax.random.key(0), jnp.zeros((1, 17), jnp.int32))
