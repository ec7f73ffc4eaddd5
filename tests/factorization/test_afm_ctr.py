"""Whole click-through-rate models made small."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.factorization.afm_ctr import CTRCompression, compress_ctr, forward, fuse_tables, macs_per_sample
from compressjax.leaf import Shifted
from compressjax.models.deepfm import DeepFM, DeepFMConfig, pairwise
from compressjax.ops import nbits
from compressjax.select import weights

MODEL = DeepFMConfig(fields=(("a", 30), ("b", 12), ("c", 5)), numeric=2, width=4, hidden=(10, 8))


def batches(seed=0, count=2):
    rng = np.random.default_rng(seed)
    return [
        {
            "ids": jnp.asarray(np.stack([rng.zipf(1.5, 64) % n for _, n in MODEL.fields], 1), jnp.int32),
            "numeric": jnp.asarray(rng.uniform(size=(64, 2)), jnp.float32),
        }
        for _ in range(count)
    ]


def random_params(model, seed=0):
    shapes = jax.eval_shape(
        DeepFM(model).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, model.numeric))
    )["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5 + 0.1, jnp.float32), shapes)


def logits(params, model, batch):
    return forward(model)(params, batch)


@pytest.mark.parametrize("interaction, fuse", [("fm", True), pytest.param("none", False, marks=pytest.mark.slow)])
def test_full_ranks_are_the_model(interaction, fuse):
    model = dataclasses.replace(MODEL, interaction=interaction)
    params, data = random_params(model), batches()
    cfg = CTRCompression(embed_ranks=4, mlp_ranks=(10, 8), fuse=fuse)
    small, sizes = compress_ctr(params, model, data, cfg)
    np.testing.assert_allclose(logits(small, sizes, data[0]), logits(params, model, data[0]), atol=2e-3)
    assert sizes.codes == ((4, 4, 4) if fuse else None) and sizes.middle == ((10, "none"), (8, "none"))


def test_fusing_changes_no_logit_and_shrinks_what_the_mlp_reads():
    params, data = random_params(MODEL), batches()
    cfg = CTRCompression(embed_ranks={"a": 2, "b": 1, "c": 3}, mlp_ranks=(None, 4), fuse=False)
    apart, sizes = compress_ctr(params, MODEL, data, cfg)
    assert isinstance(apart["embed_a"]["embedding"], Shifted)
    fused, small = fuse_tables(apart, sizes)
    np.testing.assert_allclose(logits(fused, small, data[1]), logits(apart, sizes, data[1]), atol=1e-4)
    assert small.codes == (2, 1, 3) and fused["mlp0"]["kernel"].shape == (2 + 1 + 3 + 2, 10)
    assert {path for path in weights(fused) if path.startswith("expand")} == {
        f"expand_{name}/{part}" for name in "abc" for part in ("kernel", "bias")
    }
    shapes = jax.eval_shape(DeepFM(small).init, jax.random.key(0), data[0]["ids"], data[0]["numeric"])["params"]
    assert jax.tree.map(lambda a: a.shape, fused) == jax.tree.map(lambda a: a.shape, shapes)
    with pytest.raises(ValueError, match="the factorisation machine reads embeddings too"):
        fuse_tables(apart, sizes, expand=False)
    with pytest.raises(TypeError, match="embed_a must hold a low-rank leaf"):
        fuse_tables(params, MODEL)


def test_sizes_are_all_that_is_stored():
    model = dataclasses.replace(MODEL, interaction="none")
    small, sizes = compress_ctr(
        random_params(model), model, batches(), CTRCompression(embed_ranks=2, mlp_ranks=(None, 4))
    )
    stored = {path: nbits(w) // 32 for path, w in weights(small).items()}
    assert stored.pop("embed_a/embedding") == 30 * 2
    assert stored["mlp1_first/kernel"] + stored["mlp1_first/bias"] == 10 * 4 + 4
    assert stored["mlp1_second/kernel"] + stored["mlp1_second/bias"] == 4 * 8 + 8
    assert macs_per_sample(small) == (2 * 3 + 2) * 10 + 10 * 4 + 4 * 8 + 8 + 2
    assert sizes.read == (2, 2, 2)


def test_mimicking_is_nearer_than_cutting_the_weights():
    params, data = random_params(MODEL), batches(count=4)
    miss = {}
    for method in ("afm", "svd"):
        small, sizes = compress_ctr(
            params, MODEL, data, CTRCompression(embed_ranks=2, mlp_ranks=(None, 3), method=method)
        )
        miss[method] = float(jnp.mean((logits(small, sizes, data[0]) - logits(params, MODEL, data[0])) ** 2))
    assert miss["afm"] < miss["svd"]


@pytest.mark.slow
def test_statistics_may_follow_the_layers_as_they_become():
    params, data = random_params(MODEL), batches()
    found = [
        compress_ctr(params, MODEL, data, CTRCompression(embed_ranks=2, mlp_ranks=(4, 4), recompute=again))[0]
        for again in (False, True)
    ]
    np.testing.assert_array_equal(found[0]["mlp0_second"]["kernel"], found[1]["mlp0_second"]["kernel"])
    assert not np.allclose(found[0]["mlp1_second"]["kernel"], found[1]["mlp1_second"]["kernel"])


def test_a_rectifier_between_is_not_dropped_and_gradients_reach_all_parts():
    params, data = random_params(MODEL), batches()
    outs = {}
    for middle in ("none", "relu"):
        cfg = CTRCompression(embed_ranks=2, mlp_ranks=(4, 4), middle=middle)
        small, sizes = compress_ctr(params, MODEL, data, cfg)
        outs[middle] = logits(small, sizes, data[0])
        grads = jax.grad(lambda p, s=sizes: jnp.sum(logits(p, s, data[0]) ** 2))(small)
        # A first layer's bias can lie behind rectifiers that are all shut, so whole layers are looked at.
        assert all(any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(layer)) for layer in grads.values())
    assert not np.allclose(outs["none"], outs["relu"])


def test_pairs_of_fields():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 4)), jnp.float32)
    wanted = sum(jnp.sum(rows[:, i] * rows[:, j], axis=-1) for i in range(3) for j in range(i))
    np.testing.assert_allclose(pairwise(rows), wanted, atol=1e-5)


def test_bad_input_is_refused():
    params, data = random_params(MODEL), batches(count=1)
    with pytest.raises(ValueError, match="CTRCompression ranks must be >= 1, got 0"):
        CTRCompression(embed_ranks=0)
    with pytest.raises(ValueError, match="CTRCompression.middle must be one of"):
        CTRCompression(middle="gelu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"embed_ranks must name every field once, \['a', 'b', 'c'\], got \['a'\]"):
        compress_ctr(params, MODEL, data, CTRCompression(embed_ranks={"a": 2}))
    with pytest.raises(ValueError, match="mlp_ranks must have 2 entries"):
        compress_ctr(params, MODEL, data, CTRCompression(mlp_ranks=(4,)))
    with pytest.raises(ValueError, match="the model is compressed already"):
        compress_ctr(params, dataclasses.replace(MODEL, codes=(2, 2, 2)), data, CTRCompression())
    with pytest.raises(ValueError, match=r"ids must be in 0..29 and at least one"):
        compress_ctr(params, MODEL, [{**data[0], "ids": data[0]["ids"] + 30}], CTRCompression())
    with pytest.raises(ValueError, match=r"DeepFMConfig.codes must be 3 widths"):
        dataclasses.replace(MODEL, codes=(2,))
    with pytest.raises(ValueError, match=r"ids must be \[B, 3\] and numeric \[B, 2\]"):
        logits(params, MODEL, {"ids": jnp.zeros((4, 2), jnp.int32), "numeric": jnp.zeros((4, 2))})
