import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from compressjax.checkpoint.hf_tokenizer import read_chat_template, read_eos_ids, read_tokenizer


@pytest.fixture
def tokenizer():
    """Three words."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_saved_truncation_and_padding_do_not_reach_the_text(tokenizer, tmp_path):
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("a b a b a").ids == [1, 2, 1, 2, 1]


def test_absent_damaged_and_sentencepiece_only(tmp_path):
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer\.model only"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable tokenizer"):
        read_tokenizer(tmp_path)


def test_chat_template_places(tmp_path):
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "plain"}))
    assert read_chat_template(tmp_path) == "plain"
    listed = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "standard"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    assert read_chat_template(tmp_path) == "standard"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read_chat_template(tmp_path) == "file"


def test_ids_that_end_a_generation(tmp_path):
    assert read_eos_ids(tmp_path, {}) == ()
    assert read_eos_ids(tmp_path, {"eos_token_id": 2}) == (2,)
    assert read_eos_ids(tmp_path, {"eos_token_id": [5, 6, 5]}) == (5, 6)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert read_eos_ids(tmp_path, {"eos_token_id": 2}) == (8, 9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert read_eos_ids(tmp_path, {"eos_token_id": 2}) == (2,)
