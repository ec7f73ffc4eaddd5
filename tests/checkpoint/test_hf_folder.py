import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from compressjax.checkpoint import load_model, open_model
from compressjax.models.llama import Llama

from .conftest import DECODERS, REFERENCE

Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_reference_checkpoints(name):
    loaded = load_model(REFERENCE / name)
    wanted = np.load(REFERENCE / name / "reference.npz")
    got = Llama(loaded.config).apply({"params": loaded.params}, wanted["tokens"])
    np.testing.assert_allclose(got, wanted["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_every_number_in_the_file_is_read_once(name):
    source = open_model(REFERENCE / name)
    trees = [source.rest(), *(source.block(index) for index in range(source.num_blocks))]

    def leaves(tree):
        return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]

    read = np.sort(np.concatenate([leaf.ravel() for tree in trees for leaf in leaves(tree)]))
    stored = load_file(REFERENCE / name / "model.safetensors").values()
    np.testing.assert_array_equal(read, np.sort(np.concatenate([values.ravel() for values in stored])))


def test_kernels_are_transposed():
    source = open_model(REFERENCE / "llama_linear")
    stored = load_file(REFERENCE / "llama_linear" / "model.safetensors")
    block = source.block(1)
    np.testing.assert_array_equal(block["mlp"]["down"]["kernel"], stored["model.layers.1.mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(block["attn"]["k"]["bias"], stored["model.layers.1.self_attn.k_proj.bias"])
    np.testing.assert_array_equal(source.rest()["head"]["kernel"], stored["lm_head.weight"].T)
    assert block["mlp"]["down"]["kernel"].flags.c_contiguous


def shard(folder, count):
    """Split model.safetensors into shards with an index, as transformers names them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: values for index, (name, values) in enumerate(tensors.items()) if index % count == number}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            equal(value, second[key])
        else:
            np.testing.assert_array_equal(value, second[key])


@pytest.mark.parametrize("count", [1, 3])
def test_shards_give_the_same_model(reference_folder, count):
    folder = reference_folder("qwen3")
    whole = open_model(REFERENCE / "qwen3")
    shard(folder, count)
    split = open_model(folder)
    assert split.config == whole.config
    assert len(split.files) == 2 + count
    equal(split.rest(), whole.rest())
    equal(split.block(1), whole.block(1))


def test_a_missing_shard_and_a_wrong_index_are_named(reference_folder):
    folder = reference_folder("qwen3")
    shard(folder, 2)
    index = folder / "model.safetensors.index.json"
    stated = json.loads(index.read_text())
    stated["weight_map"]["model.norm.weight"] = next(
        file for file in stated["weight_map"].values() if file != stated["weight_map"]["model.norm.weight"]
    )
    index.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"lacks tensor model\.norm\.weight"):
        open_model(folder)
    stated["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="outside the folder"):
        open_model(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="lacks a weight_map"):
        open_model(folder)
    shard_file = next(folder.glob("model-00002*"))
    shard_file.unlink()
    stated["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(stated))
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        open_model(folder)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types_widen_exactly(reference_folder, edit_tensors, dtype):
    folder = reference_folder("smollm2")
    wanted = {}

    def narrow(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)
            wanted[name] = tensors[name].astype(np.float32)

    edit_tensors(folder, narrow)
    source = open_model(folder)
    got = source.block(0)["attn"]["q"]["kernel"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted[Q0].T)
    np.testing.assert_array_equal(source.rest()["embed"]["embedding"], wanted["model.embed_tokens.weight"])


def test_derived_buffers_and_a_repeated_tied_head_are_let_pass(reference_folder, edit_tensors):
    folder = reference_folder("smollm2")

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    edit_tensors(folder, add)
    assert "head" not in open_model(folder).rest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q0), "1 tensors are missing: model.layers.0.self_attn.q_proj.weight"),
        (lambda t: t.update({"score.weight": t[Q0]}), "no place in the model: score.weight"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q0]}), r"no place in the model: model\.layers\.2"),
        (lambda t: t.update({Q0: t[Q0][:-1]}), r"q_proj.weight should have shape \(32, 32\) .* got \(31, 32\)"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}), r"\(97, 32\) .* got \(32, 97\)"),
    ],
)
def test_tensors_at_odds_with_the_configuration_are_refused_at_opening(reference_folder, edit_tensors, change, message):
    folder = reference_folder("llama3")
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        open_model(folder)


def test_an_untied_model_without_head_is_refused(reference_folder, edit_config):
    folder = reference_folder("smollm2")
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        open_model(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_are_found_when_their_block_is_read(reference_folder, edit_tensors, bad):
    folder = reference_folder("llama3")

    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = bad

    edit_tensors(folder, spoil)
    source = open_model(folder)
    source.block(0)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight holds 1 NaN"
    ):
        source.block(1)
    with pytest.raises(ValueError, match="holds 1 NaN"):
        load_model(folder)


def test_integer_weights_are_refused(reference_folder, edit_tensors):
    folder = reference_folder("llama3")
    edit_tensors(folder, lambda tensors: tensors.update({Q0: tensors[Q0].astype(np.int32)}))
    with pytest.raises(ValueError, match="q_proj.weight should hold floating values, got int32"):
        open_model(folder).block(0)


def test_truncated_weights_are_refused(reference_folder):
    folder = reference_folder("llama3")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors is truncated"):
        open_model(folder)


def test_missing_files_and_damaged_configurations(reference_folder, tmp_path):
    folder = reference_folder("llama3")
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        open_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="should hold a JSON object, got list"):
        open_model(folder)
    folder = reference_folder("qwen3")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_model(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(reference_folder):
    folder = reference_folder("llama3")
    vocab = {f"t{index}": index for index in range(97)}
    Tokenizer(models.WordLevel(vocab, "t0")).save(str(folder / "tokenizer.json"))
    assert open_model(folder).tokenizer.get_vocab_size() == 97
    Tokenizer(models.WordLevel(vocab | {"more": 97}, "t0")).save(str(folder / "tokenizer.json"))
    source = open_model(folder)
    with pytest.raises(ValueError, match="ids up to 97, the embedding 97 rows"):
        _ = source.tokenizer
