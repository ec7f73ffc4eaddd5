import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Hessian, Moments, Record, measure
from compressjax.factorization import activation_scale, fold_scales
from compressjax.models import Llama, LlamaConfig


def config(kv_heads=1, **changes):
    return LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=kv_heads,
        head_dim=8,
        max_positions=32,
        **changes,
    )


def scales(params, names, seed=0):
    rng = np.random.default_rng(seed)
    blocks, out = params["blocks"], {}
    shared = {}
    for name in names:
        part, leaf = name.split("/")
        width = blocks[part][leaf]["kernel"].shape[-2]
        group = {"q": "n", "k": "n", "v": "n", "gate": "m", "up": "m"}.get(leaf, leaf)
        if group not in shared:
            shared[group] = jnp.asarray(rng.gamma(3.0, size=(2, width)) + 0.2, jnp.float32)
        out[f"blocks/{name}/kernel"] = shared[group]
    return out


ALL = ("attn/q", "attn/k", "attn/v", "mlp/gate", "mlp/up", "mlp/down")


def parameters(cfg):
    shapes = jax.eval_shape(Llama(cfg).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, jnp.float32), shapes)


@pytest.mark.parametrize("kv_heads, names", [(1, ALL), (2, (*ALL, "attn/o"))])
def test_folding_leaves_the_function_as_it_was(kv_heads, names):
    cfg = config(kv_heads, mlp_bias=True, qkv_bias=True)
    tokens = jax.random.randint(jax.random.key(1), (2, 8), 0, 40)
    params = parameters(cfg)
    found = scales(params, names)
    folded = fold_scales(params, found)
    apply = jax.jit(lambda p: Llama(cfg).apply({"params": p}, tokens))
    np.testing.assert_allclose(apply(folded), apply(params), atol=1e-4)
    down = params["blocks"]["mlp"]["down"]["kernel"] * found["blocks/mlp/down/kernel"][..., None]
    np.testing.assert_allclose(folded["blocks"]["mlp"]["down"]["kernel"], down, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s | {"blocks/attn/o/kernel": jnp.ones((2, 16))}, "cannot be folded .grouped queries."),
        (lambda s: s | {"blocks/attn/k/kernel": s["blocks/attn/k/kernel"] * 2}, "read one norm and must share one"),
        (lambda s: {k: v for k, v in s.items() if "gate" not in k}, "read one norm and must share one scale"),
        (lambda s: s | {"blocks/mlp/down/kernel": jnp.zeros((2, 24))}, "must be finite and positive"),
        (lambda s: s | {"blocks/mlp/sideways/kernel": jnp.ones((2, 24))}, "no weight at 'blocks/mlp/sideways"),
        (lambda s: s | {"embed/embedding": jnp.ones(40)}, "nothing feeds .'embed/embedding'."),
    ],
)
def test_what_cannot_be_folded_is_refused(change, message):
    params = parameters(config())
    with pytest.raises(ValueError, match=message):
        fold_scales(params, change(scales(params, ALL)))


def test_scales_are_sizes_of_inputs_with_geometric_mean_one():
    x = np.random.default_rng(0).normal(size=(50, 6)) * np.arange(1, 7)
    x[:, 2] = 0
    hessian, moments = (measure(s, jnp.asarray(x, jnp.float32)) for s in (Hessian(), Moments()))
    for kind, record, size in (
        ("rownorm", hessian, np.sqrt((x**2).sum(0))),
        ("rms", hessian, np.sqrt((x**2).mean(0))),
        ("mean_abs", moments, np.abs(x).mean(0)),
    ):
        found = activation_scale(record, kind, 1e-3)
        np.testing.assert_allclose(found, (size + 1e-3) / np.exp(np.log(size + 1e-3).mean()), rtol=1e-4)
        assert float(found.min()) > 0


def test_a_record_without_the_sums_is_refused():
    with pytest.raises(ValueError, match="BitStack.scale='mean_abs' needs record.abs_sum and record.count"):
        activation_scale(Record(count=jnp.float32(1), xtx=jnp.eye(2)), "mean_abs", 1e-3)
    with pytest.raises(ValueError, match="BitStack.scale='rms' needs record.xtx and record.count"):
        activation_scale(None, "rms", 1e-3)
