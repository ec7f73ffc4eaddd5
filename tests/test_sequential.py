"""Block by block equals doing it by hand, with inputs from the compressed prefix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Hessian, calibrate, measure
from compressjax.leaf import Affine, ByLayer, unpack_codes
from compressjax.models.config import LlamaConfig
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.ops import dense
from compressjax.quantization import GPTQ, RTN, gptq, quantize
from compressjax.select import replace, weights
from compressjax.sequential import in_chunks, quantize_blockwise

CFG = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=True,
)
METHOD = GPTQ(bits=3, group=16)


@pytest.fixture(scope="module")
def model():
    tokens = jax.random.randint(jax.random.key(1), (6, 12), 0, 61)
    params = Llama(CFG).init(jax.random.key(0), tokens)["params"]
    return jax.tree.map(lambda a: a * 4 if a.ndim == 3 else a, params), tokens


@pytest.fixture(scope="module")
def compressed(model):
    return quantize_blockwise(LlamaBlocks(CFG), *model, METHOD, batch=2)


@functools.partial(jax.jit, static_argnames="method")
def quantised(w, record, *, method):
    return gptq(w, record, method)[0]


def by_hand(params, tokens, method, mask=None, follow=None):
    """Eager, weight by weight, each with a Hessian from a fresh run of everything before it.

    With ``follow``, a compressed tree, every weight is compressed behind the weights of that tree: one code that falls
    on the other side of an edge, because sums differ in the last bit, would change all that come after it.
    """
    model = LlamaBlocks(CFG)
    x = original = model.embed(params, tokens)
    extra = {} if mask is None else {"mask": mask}
    done = []
    for i in range(CFG.num_layers):
        block = made = raw = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        for number in range(len(model.stages)):

            def until(block, x, number=number):
                carry = {"x": x, **extra}
                for stage in model.stages[: number + 1]:
                    inputs, carry = stage.advance(block, carry)
                return inputs, carry

            inputs, _ = until(block, x)
            target, _ = until(raw, original)
            record = measure(Hessian(), inputs, mask)
            drift = (target - inputs).reshape(-1, inputs.shape[-1])
            flat = inputs.reshape(-1, inputs.shape[-1])
            if mask is not None:
                drift = jnp.where(mask.reshape(-1)[:, None], drift, 0)
            record = dataclasses.replace(record, dxxt=drift.T @ flat)
            found = weights(block)
            new = {p: quantised(found[p], record, method=method) for p in model.stages[number].weights}
            made = replace(made, new)
            if follow is not None:
                new = {p: jax.tree.map(lambda a, i=i: a[i], weights(follow)[f"blocks/{p}"]) for p in new}
            block = replace(block, new)
        done.append(made)
        for state, b in ((x, block), (original, raw)):
            carry = {"x": state, **extra}
            for stage in model.stages:
                _, carry = stage.advance(b, carry)
            out = model.finish(b, carry)
            if b is block and b is not raw:
                x = out
            else:
                original = out
    return done


@pytest.mark.parametrize("asymmetric", [pytest.param("none", marks=pytest.mark.slow), "target"])
def test_equals_by_hand(model, asymmetric):
    params, tokens = model
    method = dataclasses.replace(METHOD, asymmetric=asymmetric, alpha=0.5)
    new, _ = quantize_blockwise(LlamaBlocks(CFG), params, tokens, method, batch=2)
    for i, block in enumerate(by_hand(params, tokens, method, follow=new)):
        for path, leaf in weights(block).items():
            if isinstance(leaf, Affine):
                ours = jax.tree.map(lambda a, i=i: a[i], weights(new)[f"blocks/{path}"])
                agree = float(jnp.mean(unpack_codes(ours) == unpack_codes(leaf)))
                assert agree > 0.98, f"block {i} {path}: {agree:.3f} of the codes agree"


def test_first_stage_equals_one_pass(model, compressed):
    """The first block's attention input does not depend on anything compressed."""
    params, tokens = model
    stats = calibrate(lambda p, t: Llama(CFG).apply({"params": p}, t), params, [tokens], paths="blocks/attn/q")
    one_pass = quantize(params, {"blocks/attn/q": METHOD}, stats=stats)["blocks"]["attn"]["q"]["kernel"]
    ours = compressed[0]["blocks"]["attn"]["q"]["kernel"]
    assert float(jnp.mean(unpack_codes(ours)[0] == unpack_codes(one_pass)[0])) > 0.99


def test_result_runs_and_is_closer_than_rounding(model, compressed):
    params, tokens = model
    logits = Llama(CFG).apply({"params": params}, tokens)
    ours = Llama(CFG).apply({"params": compressed[0]}, tokens)
    plain = Llama(CFG).apply({"params": quantize(params, RTN(bits=3, group=16))}, tokens)
    assert float(jnp.mean((ours - logits) ** 2)) < float(jnp.mean((plain - logits) ** 2))
    np.testing.assert_allclose(ours, Llama(CFG).apply({"params": dense(compressed[0])}, tokens), atol=1e-4)


def test_infos_are_stacked_by_path(compressed):
    _, infos = compressed
    assert len(infos) == 7
    assert infos["blocks/mlp/down/kernel"].error.shape == (2,)
    assert all(bool(jnp.all(i.error < i.rounding_error)) for i in infos.values())


def test_chunking_changes_nothing(model, compressed):
    params, tokens = model
    other, _ = quantize_blockwise(LlamaBlocks(CFG), params, tokens, METHOD, batch=4)
    for path, leaf in weights(other).items():
        if isinstance(leaf, Affine):
            ours = weights(compressed[0])[path]
            assert float(jnp.mean(unpack_codes(ours) == unpack_codes(leaf))) > 0.98


def test_masked_tokens_contribute_nothing(model):
    params, tokens = model
    mask = jnp.arange(12)[None] < jnp.asarray([[12], [5], [9], [12], [3], [7]])
    other = jnp.where(mask, tokens, 7)
    results = [quantize_blockwise(LlamaBlocks(CFG), params, t, METHOD, mask=mask)[0] for t in (tokens, other)]
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rules_mix_methods_and_leave_alone(model):
    params, tokens = model
    new, infos = quantize_blockwise(
        LlamaBlocks(CFG), params, tokens, {"**/attn/v": None, "**/mlp/*": RTN(bits=8), "**": METHOD}
    )
    blocks = new["blocks"]
    assert blocks["attn"]["v"]["kernel"].shape == (2, 32, 16)
    assert blocks["mlp"]["up"]["kernel"].bits == 8
    assert blocks["attn"]["q"]["kernel"].bits == 3
    assert len(infos) == 6


def test_progress_is_told(model):
    calls = []
    quantize_blockwise(LlamaBlocks(CFG), *model, METHOD, progress=lambda *a: calls.append(a))
    assert calls == [(1, 2), (2, 2)]


def test_refusals(model):
    params, tokens = model
    with pytest.raises(ValueError, match=r"calibration tokens must be \[windows >= 1"):
        in_chunks(tokens[:0])
    with pytest.raises(ValueError, match="mask must have the shape"):
        in_chunks(tokens, jnp.ones((2, 2), bool))
    broken = replace(params, {"blocks/mlp/up/kernel": params["blocks"]["mlp"]["up"]["kernel"].at[1, 0, 0].set(jnp.inf)})
    with pytest.raises(ValueError, match=r"weight of blocks\[1\]/mlp/up/kernel has NaN or infinite"):
        quantize_blockwise(LlamaBlocks(CFG), broken, tokens, METHOD)
    with pytest.raises(ValueError, match="match no weight"):
        quantize_blockwise(LlamaBlocks(CFG), params, tokens, {"**/attn/w": METHOD})


def test_a_short_last_chunk_is_filled_and_masked(model):
    _, tokens = model
    chunks = in_chunks(tokens, batch=4)
    assert chunks.tokens.shape == (2, 4, 12)
    assert chunks.mask is not None and int(chunks.mask.sum()) == tokens.size


def test_choices_change_single_weights_of_single_blocks(model, compressed):
    params, tokens = model
    other = dataclasses.replace(METHOD, bits=2)
    choices = {"blocks/0/mlp/up/kernel": other, "blocks/1/attn/o/kernel": None}
    tree, infos = quantize_blockwise(LlamaBlocks(CFG), params, tokens, METHOD, batch=2, choices=choices)
    up, o, q = (tree["blocks"][part][name]["kernel"] for part, name in (("mlp", "up"), ("attn", "o"), ("attn", "q")))
    assert isinstance(up, ByLayer) and [v.bits for v in up.variants] == [2, 3]
    np.testing.assert_array_equal(dense(o)[1], params["blocks"]["attn"]["o"]["kernel"][1])
    np.testing.assert_array_equal(dense(o)[0], dense(compressed[0]["blocks"]["attn"]["o"]["kernel"])[0])
    assert isinstance(q, Affine)
    assert np.isnan(infos["blocks/attn/o/kernel"].error).tolist() == [False, True]
    assert Llama(CFG).apply({"params": tree}, tokens).shape == (6, 12, 61)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks/2/attn/o/kernel", "blocks/<0 to 1>/<path>, got 'blocks/2/attn/o/kernel'"),
        ("blocks/attn/o/kernel", "blocks/<0 to 1>/<path>"),
        ("blocks/1/attn/x/kernel", r"choices name \['attn/x/kernel'\] in block 1"),
    ],
)
def test_choices_of_what_is_not_there_are_refused(model, path, message):
    with pytest.raises(ValueError, match=message):
        quantize_blockwise(LlamaBlocks(CFG), *model, RTN(bits=3, group=16), choices={path: None})
