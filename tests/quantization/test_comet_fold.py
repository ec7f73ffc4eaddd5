"""Folded permutations leave outputs as they are, bit for bit, and what cannot be folded is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.leaf import pack_w4ax
from compressjax.ops import dense, matmul
from compressjax.quantization import RTN, rtn
from compressjax.quantization.comet_fold import fold_permutation


def w4ax(rows, cols, perm, seed=0, lead=()):
    rng = np.random.default_rng(seed)
    return pack_w4ax(
        jnp.asarray(rng.integers(-8, 8, (*lead, rows, cols))),
        jnp.asarray(rng.uniform(0.05, 0.2, (*lead, rows // 32, cols)), jnp.float16),
        None if perm is None else jnp.asarray(perm),
        1,
        block=32,
    )


def mlp(kind, lead=()):
    rng = np.random.default_rng(0)
    perm = rng.permuted(np.broadcast_to(np.arange(64), (*lead, 64)), axis=-1)

    def writer(seed):
        if kind == "w4ax":
            return w4ax(32, 64, None, seed, lead)
        return jnp.asarray(np.random.default_rng(seed).normal(size=(*lead, 32, 64)), jnp.float32)

    bias = jnp.asarray(rng.normal(size=(*lead, 64)), jnp.float32)
    return {
        "gate": {"kernel": writer(1), "bias": bias},
        "up": {"kernel": writer(2)},
        "down": {"kernel": w4ax(64, 32, perm, 3, lead)},
    }


def run_mlp(p, x):
    gate = matmul(x, p["gate"]["kernel"]) + p["gate"]["bias"][None]
    return matmul(jax.nn.silu(gate) * matmul(x, p["up"]["kernel"]), p["down"]["kernel"])


@pytest.mark.parametrize("kind", ["w4ax", "dense"])
def test_gate_and_up_take_over_the_permutation_of_down(kind):
    params = {"mlp": mlp(kind)}
    folded = fold_permutation(params, "mlp/down/kernel")
    assert folded["mlp"]["down"]["kernel"].perm is None
    x = jax.random.normal(jax.random.key(0), (9, 32))
    np.testing.assert_array_equal(run_mlp(params["mlp"], x), run_mlp(folded["mlp"], x))


def test_stacked_layers_fold_layer_by_layer():
    params = {"mlp": mlp("w4ax", lead=(3,))}
    folded = fold_permutation(params, "mlp/down/kernel")
    x = jax.random.normal(jax.random.key(0), (3, 5, 32))
    np.testing.assert_array_equal(jax.vmap(run_mlp)(params["mlp"], x), jax.vmap(run_mlp)(folded["mlp"], x))


def attention(perm):
    return {
        "q": {"kernel": w4ax(64, 64, np.arange(64)[::-1], 7)},
        "v": {"kernel": w4ax(64, 32, None, 1), "bias": jnp.arange(32.0)},
        "o": {"kernel": w4ax(64, 64, perm, 2)},
    }


def run_attention(p, x, heads=4, kv=2):
    v = (matmul(x, p["v"]["kernel"]) + p["v"]["bias"][None]).reshape(-1, kv, 16)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(3), (heads, x.shape[0], x.shape[0])), axis=-1)
    context = jnp.einsum("hts,shd->thd", weights, jnp.repeat(v, heads // kv, axis=1))
    return matmul(context.reshape(x.shape[0], -1), p["o"]["kernel"])


def inside_heads(alike):
    rng = np.random.default_rng(0)
    first = [rng.permutation(16) for _ in range(2)]
    second = first if alike else [rng.permutation(16) for _ in range(2)]
    return np.concatenate([p + 16 * h for h, p in enumerate((first[0], second[0], first[1], second[1]))])


def test_v_takes_over_a_permutation_of_o_that_stays_inside_heads():
    params = {"attn": attention(inside_heads(alike=True))}
    folded = fold_permutation(params, "attn/o/kernel", heads=(4, 2))
    x = jax.random.normal(jax.random.key(0), (6, 64))
    np.testing.assert_array_equal(run_attention(params["attn"], x), run_attention(folded["attn"], x))
    assert not bool(jnp.all(dense(folded["attn"]["v"]["kernel"]) == dense(params["attn"]["v"]["kernel"])))


def test_what_cannot_be_folded_is_refused_by_name():
    params = {"attn": attention(inside_heads(alike=False)), "mlp": mlp("w4ax")}
    with pytest.raises(ValueError, match="attn/o/kernel cannot be folded: query heads that share a key head"):
        fold_permutation(params, "attn/o/kernel", heads=(4, 2))
    with pytest.raises(ValueError, match="attn/o/kernel into v needs heads="):
        fold_permutation(params, "attn/o/kernel")
    with pytest.raises(ValueError, match="heads must be .* got \\(5, 2\\)"):
        fold_permutation(params, "attn/o/kernel", heads=(5, 2))
    with pytest.raises(ValueError, match="attn/q/kernel cannot be folded: its input is the residual stream"):
        fold_permutation(params, "attn/q/kernel")
    across = {"attn": attention(np.random.default_rng(1).permutation(64))}
    with pytest.raises(ValueError, match="attn/o/kernel cannot be folded: it moves channels from one head to another"):
        fold_permutation(across, "attn/o/kernel", heads=(4, 2))
    with pytest.raises(ValueError, match="mlp/gate/kernel has no permutation"):
        fold_permutation(params, "mlp/gate/kernel")
    with pytest.raises(KeyError, match="no weight at 'mlp/dwn'"):
        fold_permutation(params, "mlp/dwn")
    packed = {"mlp": {**mlp("dense"), "up": {"kernel": rtn(jnp.ones((32, 64)), RTN(bits=4, group=32))}}}
    with pytest.raises(TypeError, match="outputs of mlp/up/kernel, stored as Affine, cannot be permuted"):
        fold_permutation(packed, "mlp/down/kernel")
    alone = {"mlp": {"down": mlp("dense")["down"]}}
    with pytest.raises(ValueError, match="mlp/down/kernel cannot be folded: there is no mlp/gate/kernel"):
        fold_permutation(alone, "mlp/down/kernel")
