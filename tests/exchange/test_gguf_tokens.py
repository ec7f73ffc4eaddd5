import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from compressjax.checkpoint import open_model
from compressjax.checkpoint.gguf_tokenizer import build_tokenizer
from compressjax.exchange.export import FolderExtras
from compressjax.exchange.export_gguf import export_gguf
from compressjax.exchange.gguf_tokens import tokenizer_metadata

PATH = Path("model.gguf")
TEXT = "It's 12345 — IT'S\n\n  Zürich e\u0301 東京 👩‍👩‍👧\t<|end|>x"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
# As published in the tokenizer.json of these models.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(*steps, normalizer=None, own_rule=True, **options):
    """A byte-level BPE as a Hugging Face folder carries it, with two merges, a control and a user-defined token."""
    tokens = [*BYTES, "It", "th"]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [("I", "t"), ("t", "h")], **options)
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own_rule)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda: byte_level(own_rule=False), "gpt-2"),
        (lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), own_rule=False), "smollm"),
        (lambda: byte_level(split(LLAMA3), ignore_merges=True), "llama-bpe"),
        (lambda: byte_level(split(QWEN2), normalizer=normalizers.NFC()), "qwen2"),
    ],
)
def test_each_rule_is_recognised_and_comes_back(make, rule):
    tokenizer = make()
    metadata = tokenizer_metadata(tokenizer, vocab_size=264, eos_ids=(258, 3), chat_template="{{ messages }}")
    assert metadata["tokenizer.ggml.pre"] == rule
    assert metadata["tokenizer.ggml.tokens"][258:] == ["<|end|>", "<tool>", *(f"[PAD{i}]" for i in range(260, 264))]
    assert metadata["tokenizer.ggml.token_type"][257:] == [1, 3, 4, 5, 5, 5, 5]
    assert metadata["tokenizer.ggml.eos_token_id"] == 258 and metadata["tokenizer.ggml.eot_token_id"] == 3
    again = build_tokenizer(metadata, PATH)
    assert again.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert again.decode(again.encode(TEXT).ids) == tokenizer.decode(tokenizer.encode(TEXT).ids)


def test_a_rule_without_a_name_is_refused():
    tokenizer = byte_level(split(r"\w+|\W"))
    with pytest.raises(ValueError, match="no name for here .known: smollm, llama-bpe, qwen2, gpt-2"):
        tokenizer_metadata(tokenizer, vocab_size=300)


def test_merges_that_the_model_skips_are_refused_under_another_rule():
    """Qwen's cuts with Llama's whole words: no rule has both, though the pieces agree."""
    tokenizer = byte_level(split(QWEN2), normalizer=normalizers.NFC(), ignore_merges=True)
    tokenizer.model.unk_token = None
    raw = json.loads(tokenizer.to_str())
    raw["model"]["vocab"]["def"] = 300
    with pytest.raises(ValueError, match="no name for here"):
        tokenizer_metadata(Tokenizer.from_str(json.dumps(raw)), vocab_size=301)


def test_other_kinds_and_too_many_tokens_are_refused(tokenizer):
    with pytest.raises(ValueError, match="writes BPE tokenizers, this one is WordLevel"):
        tokenizer_metadata(tokenizer, vocab_size=96)
    bare = Tokenizer(models.BPE({t: i for i, t in enumerate(BYTES)}, []))
    with pytest.raises(ValueError, match="no merges"):
        tokenizer_metadata(bare, vocab_size=256)
    with pytest.raises(ValueError, match="ids up to 259, the model 259 tokens"):
        tokenizer_metadata(byte_level(own_rule=False), vocab_size=259)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back_from_its_ranks(prefix):
    plain = ["▁", *"helo"]
    pieces = ["el", "he", "ll", "hell", "hello", "▁hello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *plain, *pieces]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-9.0] * 5 + [-0.5 - i for i in range(6)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 11,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tokenizer = build_tokenizer(metadata, PATH)
    written = tokenizer_metadata(tokenizer, vocab_size=len(tokens), eos_ids=(2,), bos_id=1)
    assert written["tokenizer.ggml.add_bos_token"] is True and written["tokenizer.ggml.add_space_prefix"] is prefix
    assert written["tokenizer.ggml.token_type"] == metadata["tokenizer.ggml.token_type"]
    again = build_tokenizer(written, PATH)
    for text in ("hello hell", "helloo  el é", TEXT):
        assert again.encode(text).ids == tokenizer.encode(text).ids


def test_a_file_carries_its_tokenizer(tmp_path, tiny, random_params, quantize):
    cfg = dataclasses.replace(tiny, vocab_size=260)
    tokenizer = byte_level(pre_tokenizers.Digits(individual_digits=True), own_rule=False)
    extras = FolderExtras(tokenizer=tokenizer, eos_ids=(258,), bos_id=257, chat_template="{{ messages }}")
    params = quantize(random_params(cfg), symmetric=True)
    source = open_model(export_gguf(params, cfg, tmp_path / "model.gguf", extras=extras))
    assert source.tokenizer.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert (source.eos_ids, source.bos_id, source.chat_template) == ((258,), 257, "{{ messages }}")
