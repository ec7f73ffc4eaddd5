import dataclasses
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf.affine import pack_affine
from compressjax.models import Blockwise, Llama, LlamaBlocks, LlamaConfig, blockwise
from compressjax.ops import dense

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 14)), jnp.int32)


def compressed(params):
    """Every kernel and the embedding as a 4-bit leaf, by rounding to 15 levels."""

    def pack(path, w):
        if path[-1].key not in ("kernel", "embedding"):
            return w
        grouped = w.reshape(*w.shape[:-2], w.shape[-2] // 32, 32, w.shape[-1])
        scale = jnp.abs(grouped).max(-2) / 7
        codes = jnp.round(grouped / scale[..., None, :]) + 8
        return pack_affine(codes.reshape(w.shape).astype(jnp.uint8), scale, None, bits=4, group=32, zero_kind="none")

    return jax.tree_util.tree_map_with_path(pack, params)


def test_parameters_of_a_config_with_everything(everything):
    cfg = everything.cfg
    made = jax.jit(Llama(cfg).init)(jax.random.key(0), TOKENS)
    assert type(made) is dict
    v, d, f, n, h, k, w = 61, 24, 40, 3, 48, 16, 8
    shapes = {
        "embed": {"embedding": (v, d)},
        "blocks": {
            "attn_norm": {"scale": (n, d)},
            "attn": {
                "q": {"kernel": (n, d, h), "bias": (n, h)},
                "k": {"kernel": (n, d, k), "bias": (n, k)},
                "v": {"kernel": (n, d, k), "bias": (n, k)},
                "o": {"kernel": (n, h, d), "bias": (n, d)},
                "q_norm": {"scale": (n, w)},
                "k_norm": {"scale": (n, w)},
            },
            "mlp_norm": {"scale": (n, d)},
            "mlp": {
                "gate": {"kernel": (n, d, f), "bias": (n, f)},
                "up": {"kernel": (n, d, f), "bias": (n, f)},
                "down": {"kernel": (n, f, d), "bias": (n, d)},
            },
        },
        "final_norm": {"scale": (d,)},
        "head": {"kernel": (d, v)},
    }
    assert jax.tree.map(jnp.shape, made["params"]) == shapes
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
    q = made["params"]["blocks"]["attn"]["q"]["kernel"]
    assert not jnp.allclose(q[0], q[1]), "layers must not share their start"


def test_parameters_of_a_plain_config(tied):
    made = jax.eval_shape(Llama(tied.cfg).init, jax.random.key(0), TOKENS)["params"]
    assert set(made) == {"embed", "blocks", "final_norm"}
    assert set(made["blocks"]["attn"]) == {"q", "k", "v", "o"}
    assert not any(path[-1].key == "bias" for path, _ in jax.tree_util.tree_leaves_with_path(made))


def test_stages_make_up_the_model(everything):
    """Walking blocks through stages and finish, with per-layer slices, is the forward pass."""
    params, blocks = everything.params, blockwise(everything.cfg)
    rest = {key: value for key, value in params.items() if key != "blocks"}
    mask = jnp.arange(14)[None] >= jnp.array([[0], [4]])
    inputs = {}
    x = blocks.embed(rest, TOKENS)
    for layer in range(blocks.num_blocks):
        block, carry = jax.tree.map(lambda a, layer=layer: a[layer], params["blocks"]), {"x": x, "mask": mask}
        for stage in blocks.stages:
            inputs[stage.weights], carry = jax.jit(stage.advance)(block, carry)
        x = jax.jit(blocks.finish)(block, carry)
    got = blocks.head(rest, x)
    np.testing.assert_allclose(got, everything.logits(params, TOKENS, mask=mask), atol=1e-5)
    read = [path for weights in inputs for path in weights]
    kernels = {
        "/".join(key.key for key in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params["blocks"])
        if path[-1].key == "kernel"
    }
    assert len(read) == 7 and set(read) == kernels
    for weights, h in inputs.items():
        for path in weights:
            part, name, _ = path.split("/")
            assert h.shape[-1] == params["blocks"][part][name]["kernel"].shape[1]


def test_a_stage_reads_earlier_weights_only(tied):
    """Spoiling a stage's own weights and all later ones does not change its inputs."""
    blocks = blockwise(tied.cfg)
    block = jax.tree.map(lambda a: a[0], tied.params["blocks"])
    carry = spoilt_carry = {"x": blocks.embed(tied.params, TOKENS)}
    paths = [path for stage in blocks.stages for path in stage.weights]
    for stage in blocks.stages:
        later = {tuple(path.split("/")) for path in paths[paths.index(stage.weights[0]) :]}
        spoilt = jax.tree_util.tree_map_with_path(
            lambda path, a, later=later: a * jnp.nan if tuple(key.key for key in path) in later else a, block
        )
        advance = jax.jit(stage.advance)
        inputs, carry_next = advance(block, carry)
        same, spoilt_carry = advance(spoilt, spoilt_carry)
        np.testing.assert_array_equal(inputs, same)
        carry = carry_next


def test_views_are_equal_and_hashable(tied):
    one, other = blockwise(tied.cfg), LlamaBlocks(tied.cfg)
    assert one == other and hash(one.stages) == hash(other.stages)
    traces = jax.jit(chex.assert_max_traces(lambda stage, p, c: stage.advance(p, c)[0], n=1), static_argnums=0)
    block, x = jax.tree.map(lambda a: a[0], tied.params["blocks"]), jnp.ones((1, 3, 32))
    for view in (one, other):
        traces(view.stages[0], block, {"x": x})
    protocol: Blockwise = one
    assert protocol.num_blocks == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(everything, side):
    length = 9
    short = TOKENS[:, :length]
    pad = (5, 0) if side == "left" else (0, 5)
    tokens = jnp.pad(short, ((0, 0), pad), constant_values=7)
    mask = jnp.pad(jnp.ones_like(short, bool), ((0, 0), pad))
    got = everything.logits(everything.params, tokens, mask=mask)
    want = everything.logits(everything.params, short)
    np.testing.assert_allclose(got[:, pad[0] : pad[0] + length], want, atol=2e-5)
    assert np.isfinite(got).all()


def test_default_positions_are_the_row_numbers(tied):
    given = tied.logits(tied.params, TOKENS, positions=jnp.arange(14)[None])
    np.testing.assert_array_equal(given, tied.logits(tied.params, TOKENS))
    moved = tied.logits(tied.params, TOKENS, positions=jnp.arange(14)[None] + 20)
    np.testing.assert_allclose(moved, given, atol=1e-4)
    stretched = tied.logits(tied.params, TOKENS, positions=jnp.arange(14)[None] * 2)
    assert np.abs(stretched - given).max() > 0.01


def test_the_future_is_not_seen_and_the_window_closes(everything):
    """Changing a token moves its own logits and, through 3 layers of window 5, those of the next 12 at most."""
    changed = TOKENS.at[:, 1].add(1) % 61
    moved = np.abs(everything.logits(everything.params, changed) - everything.logits(everything.params, TOKENS))
    per_position = moved.max((0, 2))
    assert per_position[0] == 0 and per_position[1] > 1e-3 and per_position[3] > 1e-3
    one_layer = dataclasses.replace(everything.cfg, num_layers=1)
    params = everything.params | {"blocks": jax.tree.map(lambda a: a[:1], everything.params["blocks"])}
    apply = jax.jit(lambda tokens: Llama(one_layer).apply({"params": params}, tokens))
    first, second = apply(TOKENS), apply(changed)
    per_position = np.abs(first - second).max((0, 2))
    assert (per_position[1:6] > 1e-4).all() and (per_position[6:] == 0).all()


def test_leaves_stand_in_for_kernels_and_embedding(tied):
    params = jax.jit(compressed)(tied.params)
    got = tied.logits(params, TOKENS)
    want = tied.logits(jax.jit(dense)(params), TOKENS)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(got - tied.logits(tied.params, TOKENS)).max() > 1e-2


def test_gradients_are_finite_and_reach_every_parameter(everything):
    mask = jnp.arange(14)[None] >= jnp.array([[0], [4]])

    def loss(params):
        logits = Llama(everything.cfg).apply({"params": params}, TOKENS, mask=mask)
        return jnp.sum(jnp.where(mask[..., None], jax.nn.log_softmax(logits)[..., :1], 0.0))

    grads = jax.jit(jax.grad(loss))(everything.params)
    chex.assert_tree_all_finite(grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        # A bias on keys adds the same score everywhere, up to rotation and norm, so it is small but present.
        assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_activations_stay_close(tied, equations):
    model = Llama(tied.cfg, jnp.bfloat16)
    got = jax.jit(lambda p: model.apply({"params": p}, TOKENS))(tied.params)
    want = tied.logits(tied.params, TOKENS)
    assert got.dtype == jnp.float32
    # bfloat16 has 8 bits; errors of about 20 roundings add up as their square root.
    assert jnp.linalg.norm(got - want) < 20**0.5 * 2**-8 * 2 * jnp.linalg.norm(want)
    assert jnp.linalg.norm(got - want) > 1e-4 * jnp.linalg.norm(want)
    jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, TOKENS))(tied.params)
    delicate = [eqn for eqn in equations(jaxpr) if eqn.primitive.name in ("cos", "sin", "exp", "rsqrt")]
    assert {eqn.primitive.name for eqn in delicate} == {"cos", "sin", "exp", "rsqrt"}
    assert all(eqn.invars[0].aval.dtype == jnp.float32 for eqn in delicate)


def test_the_trace_does_not_grow_with_depth(tied, equations):
    def count(depth, change):
        params = jax.tree.map(lambda a: jnp.concatenate([a] * (depth // 2)), tied.params["blocks"])
        params = jax.eval_shape(change, tied.params | {"blocks": params})
        cfg = dataclasses.replace(tied.cfg, num_layers=depth)
        return len(equations(jax.make_jaxpr(lambda p: Llama(cfg).apply({"params": p}, TOKENS))(params)))

    assert count(2, lambda p: p) == count(8, lambda p: p)
    assert count(2, compressed) == count(8, compressed)


def test_a_compressed_forward_traces_about_as_fast_as_a_dense_one(tied):
    leaves = jax.jit(compressed)(tied.params)

    def seconds(params):
        def once():
            start = time.process_time()
            jax.jit(lambda p: Llama(tied.cfg).apply({"params": p}, TOKENS)).trace(params)
            return time.process_time() - start

        return min(once() for _ in range(12))

    # Clocks on a shared machine wander, so the best of three comparisons counts.
    assert min(seconds(leaves) / seconds(tied.params) for _ in range(3)) <= 1.3


def test_a_missing_rule_is_named_and_nothing_turns_dense(tied):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Foreign:
        payload: jax.Array

    params = tied.params | {"embed": {"embedding": Foreign(jnp.ones(3))}}
    with pytest.raises(NotImplementedError, match="take.*Foreign"):
        Llama(tied.cfg).apply({"params": params}, TOKENS)


def test_refusals(tied):
    def apply(tokens, **kwargs):
        return Llama(tied.cfg).apply({"params": tied.params}, tokens, **kwargs)

    with pytest.raises(ValueError, match="49 tokens exceed the context of 48"):
        apply(jnp.zeros((1, 49), jnp.int32))
    with pytest.raises(ValueError, match=r"\[batch, length >= 1\], got \(3,\)"):
        apply(jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"got \(2, 0\)"):
        apply(jnp.zeros((2, 0), jnp.int32))
    with pytest.raises(TypeError, match="float32"):
        apply(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="mask must be bool"):
        apply(TOKENS, mask=jnp.ones((2, 14), jnp.int32))
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(2, 14\)"):
        apply(TOKENS, mask=jnp.ones((2, 13), bool))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_kv_heads": 3, "num_heads": 4}, "num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim"),
        ({"sliding_window": 0}, "sliding_window"),
    ],
)
def test_config_refusals(tied, change, message):
    fields = {field.name: getattr(tied.cfg, field.name) for field in dataclasses.fields(LlamaConfig)}
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**(fields | change))
