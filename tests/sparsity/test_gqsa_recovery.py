"""Both recovery stages: what moves, what must not, and that what is stored is what was trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.driver import BlockInputs, block_rule, leaf_rule, wants_original
from compressjax.leaf import Affine
from compressjax.leaf.group_sparse import GroupSparse, kept_groups
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.ops import dense, matmul, nbits
from compressjax.quantization import GPTQ, RTN
from compressjax.select import weights
from compressjax.sequential import quantize_blockwise
from compressjax.sparsity import BQPO, E2E, GQSA, NM, bqpo, e2e_oqp, gqsa
from compressjax.sparsity.gqsa_recovery import with_real_zeros
from compressjax.sparsity.n_m import n_m

from .problems import problem

WIDTH, COLS = 32, 8
kept_by = jax.jit(kept_groups)
KINDS = ["matrix", "2:4", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("row", "affine"))]


def run(block, carry):
    x = carry["x"] * jnp.broadcast_to(block["norm"]["scale"], carry["x"].shape)
    return jnp.tanh(matmul(x, block["up"]["kernel"])) + matmul(x, block["side"]["kernel"])


@functools.cache
def setting(kind):
    """A dense block, its compressed form, and inputs in chunks."""
    w, record, x = problem(WIDTH, 2 * COLS)
    dense_block = {
        "norm": {"scale": jnp.ones((WIDTH,))},
        "up": {"kernel": w[:, :COLS]},
        "side": {"kernel": w[:, COLS:]},
    }
    compress = {
        "row": lambda w: gqsa(w, record, GQSA(group=8, scope="row")),
        "matrix": lambda w: gqsa(w, record, GQSA(group=8)),
        "2:4": lambda w: n_m(w, record, NM(group=16)),
        "affine": _rtn,
    }[kind]
    leaves = {name: {"kernel": jax.jit(compress)(dense_block[name]["kernel"])} for name in ("up", "side")}
    leaves = {name: {"kernel": pair["kernel"][0]} for name, pair in leaves.items()}
    inputs = {"x": x.reshape(10, 4, 5, WIDTH), "mask": jnp.asarray(np.random.default_rng(0).random((10, 4, 5)) < 0.8)}
    return dense_block, {**dense_block, **leaves}, inputs


def _rtn(w):
    return leaf_rule(w, RTN(bits=2, group=16), None, None)


def squares(miss, mask):
    """Mean squared error over the tokens that count."""
    return np.mean(np.asarray(miss)[np.asarray(mask)] ** 2)


def integers(tree):
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.integer)]


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_comes_closer_and_stays_what_it_is(kind):
    dense_block, block, now = setting(kind)
    out = bqpo(block, dense_block, now, None, None, run=run, cfg=BQPO(epochs=8))
    assert float(out.after) < 0.9 * float(out.before)
    assert jax.tree.structure(out.block) == jax.tree.structure(block)
    assert nbits(out.block) == nbits(block)
    target = run(dense_block, now)
    misses = [squares(run(b, now) - target, now["mask"]) for b in (block, out.block)]
    np.testing.assert_allclose(misses, [out.before, out.after], rtol=1e-4)
    # The first loss is that of the first chunk as stored: training starts at the leaves.
    first = squares((run(block, now) - target)[0], now["mask"][0])
    np.testing.assert_allclose(out.losses[0], first, rtol=1e-4)
    same(out.block["norm"], block["norm"])
    if kind in ("row", "matrix"):
        for name in ("up", "side"):
            before, after = block[name]["kernel"], out.block[name]["kernel"]
            np.testing.assert_array_equal(kept_by(before), kept_by(after))
            assert np.any(before.codes != after.codes) and np.any(before.scale != after.scale)


def test_nothing_moves_at_rate_zero():
    dense_block, block, now = setting("matrix")
    still = BQPO(epochs=1, lr_weights=0.0, lr_scales=0.0, lr_zeros=0.0)
    same(bqpo(block, dense_block, now, None, None, run=run, cfg=still).block, block)


@pytest.mark.slow
def test_a_worse_block_is_not_kept():
    dense_block, block, now = setting("matrix")
    out = bqpo(block, dense_block, now, None, None, run=run, cfg=BQPO(epochs=1, lr_scales=5.0))
    assert float(out.after) == float(out.before)
    same(out.block, block)


@pytest.mark.slow
def test_norms_and_original_inputs_on_request():
    dense_block, block, now = setting("matrix")
    original = {**now, "x": 1.1 * now["x"]}
    cfg = BQPO(epochs=4, norms=True, targets="original")
    out = bqpo(block, dense_block, now, original, jax.random.key(0), run=run, cfg=cfg)
    miss = run(block, now) - run(dense_block, original)
    np.testing.assert_allclose(out.before, squares(miss, now["mask"]), rtol=1e-4)
    assert float(out.after) < float(out.before)
    assert np.any(out.block["norm"]["scale"] != block["norm"]["scale"])
    with pytest.raises(ValueError, match="BQPO.targets='original' needs the uncompressed network's inputs"):
        bqpo(block, dense_block, now, None, None, run=run, cfg=cfg)


def test_the_block_rule_of_each_config():
    dense_block, block, now = setting("matrix")
    inputs = BlockInputs(run, now, None)
    for cfg in (BQPO(epochs=0), GQSA(bqpo=BQPO(epochs=0)), NM(bqpo=BQPO(epochs=0))):
        assert block_rule(block, cfg, dense_block, inputs, None) is block
        assert not wants_original(cfg)
    assert wants_original(GQSA(bqpo=BQPO(targets="original")))
    tuned = block_rule(block, GQSA(bqpo=BQPO(epochs=8)), dense_block, inputs, None)
    same(tuned, bqpo(block, dense_block, now, None, None, run=run, cfg=BQPO(epochs=8)).block)
    with pytest.raises(ValueError, match="BQPO trains Affine, GroupSparse and NMSparse leaves; there is none at"):
        bqpo(dense_block, dense_block, now, None, None, run=run, cfg=BQPO())


def miss(params, batch):
    x, y = batch
    return jnp.mean((run(params, {"x": x}) - y) ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_end_to_end_trains_scales_and_nothing_else(kind):
    dense_block, block, now = setting(kind)
    batches = now["x"], run(dense_block, now)
    out = e2e_oqp(miss, block, batches, E2E(lr=5e-3, epochs=4))
    assert out.losses.shape == (40,)
    same(integers(out.params), integers(block))
    same(out.params["norm"], block["norm"])
    assert nbits(out.params) == nbits(block)
    before, after = (float(jnp.mean((run(p, now) - batches[1]) ** 2)) for p in (block, out.params))
    assert after < before
    np.testing.assert_allclose(out.losses[0], miss(block, jax.tree.map(lambda a: a[0], batches)), rtol=1e-5)


def test_end_to_end_at_rate_zero_changes_nothing():
    dense_block, block, now = setting("matrix")
    out = e2e_oqp(miss, block, (now["x"], run(dense_block, now)), E2E(lr=0.0))
    same(out.params, block)


@pytest.mark.slow
def test_real_zeros_train_and_are_counted():
    dense_block, block, now = setting("matrix")
    batches = now["x"], run(dense_block, now)
    out = e2e_oqp(miss, block, batches, E2E(lr=5e-3, epochs=4, real_zeros=True))
    w = out.params["up"]["kernel"]
    old = block["up"]["kernel"]
    assert w.zero_kind == "real" and w.zero.shape == w.scale.shape == (16,)
    assert np.any(w.zero != with_real_zeros(old).zero)
    assert nbits(w) == nbits(old) - 32 * old.zero.size + 16 * 16
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), old)
    np.testing.assert_array_equal(dense(with_real_zeros(stacked))[1], dense(old))


def test_end_to_end_refuses():
    dense_block, block, now = setting("matrix")
    with pytest.raises(ValueError, match="e2e_oqp trains Affine, GroupSparse and NMSparse leaves; there is none"):
        e2e_oqp(miss, dense_block, now["x"], E2E())
    with pytest.raises(ValueError, match="one leading axis of at least one step"):
        e2e_oqp(miss, block, (now["x"], now["x"][:3]), E2E())
    for options in ({"lr": -1.0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=f"E2E.{next(iter(options))} must be"):
            E2E(**options)


@pytest.mark.slow
def test_a_model_goes_through_all_stages():
    """Mixed by rules, block by block with recovery, then end to end on stacked leaves."""
    cfg = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        tie_embeddings=True,
    )
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 61)
    params = Llama(cfg).init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda a: a * 4 if a.ndim == 3 else a, params)
    rules = {"**/attn/*": GPTQ(bits=2, group=16, order="none"), "**": GQSA(group=8)}
    small, _ = quantize_blockwise(LlamaBlocks(cfg), params, tokens, rules, batch=2)
    kinds = {p.rpartition("/")[0]: type(w) for p, w in weights(small).items() if p.endswith("kernel")}
    assert kinds["blocks/attn/q"] is Affine and kinds["blocks/mlp/down"] is GroupSparse

    def model_loss(params, batch):
        logits = Llama(cfg).apply({"params": params}, batch)
        target = Llama(cfg).apply({"params": dense_params}, batch)
        return jnp.mean((logits - target) ** 2)

    dense_params = params
    out = e2e_oqp(model_loss, small, tokens[None], E2E(epochs=6, lr=5e-3))
    assert float(out.losses[-1]) < float(out.losses[0])
    same(integers(out.params), integers(small))
