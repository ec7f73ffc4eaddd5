"""The same numbers as transformers, on the tiny checkpoints that reference/make.py made."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint import load_minilm, load_model
from compressjax.models import Bert, Llama, prefill

LOGITS = jax.jit(lambda cfg, params, tokens: Llama(cfg).apply({"params": params}, tokens), static_argnums=0)
PREFILL = jax.jit(prefill, static_argnums=(0, 4))
FOLDER = pathlib.Path(__file__).parent / "reference"
DECODERS = ("llama3", "llama_linear", "smollm2", "qwen2", "qwen3", "mistral")
# What makes each model differ from a plain Llama: leaving it out must show.
WITHOUT = {
    "llama3": {"rope_scaling": None},
    "llama_linear": {"rope_scaling": None, "mlp_bias": False},
    "qwen2": {"qkv_bias": False},
    "qwen3": {"qk_norm": False},
    "mistral": {"sliding_window": None},
}


def reference(name):
    with np.load(FOLDER / name / "reference.npz") as file:
        return {key: jnp.asarray(file[key]) for key in file}


@pytest.mark.parametrize("name", DECODERS)
def test_logits(name):
    model, want = load_model(FOLDER / name), reference(name)
    got = LOGITS(model.config, model.params, want["tokens"])
    np.testing.assert_allclose(got, want["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name, switches", [(name, {key: value}) for name, d in WITHOUT.items() for key, value in d.items()]
)
def test_every_switch_matters(name, switches):
    model, want = load_model(FOLDER / name), reference(name)
    cfg = dataclasses.replace(model.config, **switches)
    got = LOGITS(cfg, model.params, want["tokens"])
    assert np.abs(got - want["logits"]).max() > 0.05


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_prefill_of_a_left_padded_batch(name):
    """The last logits of prompts of unequal length are those of the full rows at the same tokens."""
    model, want = load_model(FOLDER / name), reference(name)
    tokens, cut = want["tokens"], 19
    short = jnp.pad(tokens[1, :-cut], (cut, 0))
    mask = jnp.arange(tokens.shape[1])[None] >= jnp.array([[0], [cut]])
    got, _ = PREFILL(model.config, model.params, jnp.stack([tokens[0], short]), mask, tokens.shape[1])
    np.testing.assert_allclose(got[0], want["logits"][0, -1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got[1], want["logits"][1, -1 - cut], atol=1e-4, rtol=0)


def test_bert_hidden_states():
    model, want = load_minilm(FOLDER / "bert"), reference("bert")
    apply = jax.jit(lambda params, *args: Bert(model.config).apply({"params": params}, *args))
    got = apply(model.params, want["tokens"], want["mask"], want["token_types"])
    np.testing.assert_allclose(got[want["mask"]], want["hidden"][want["mask"]], atol=1e-4, rtol=0)
    # The model does look at the mask and at the types.
    assert np.abs(apply(model.params, want["tokens"])[0] - want["hidden"][0]).max() > 0.05
    whole = apply(model.params, want["tokens"], None, want["token_types"])
    assert np.abs(whole[1, :30] - want["hidden"][1, :30]).max() > 0.05
