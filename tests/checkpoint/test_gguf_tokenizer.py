from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from compressjax.checkpoint import open_model
from compressjax.checkpoint.gguf_tokenizer import build_tokenizer

PATH = Path("model.gguf")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = [
    "The capital of France is Paris, isn't it? We'll see; they've said so.",
    "12345 + 67 = 12412, 3.14159 and 1,000,000",
    "def f(x):\n\treturn {\n\t\t'a': x ** 2,  # two\n    }\r\n\r\n",
    "tabs\t\tand   spaces   \n\n\n   trailing  ",
    "Zürich, Ελλάδα, Привет, 東京, नमस्ते, 👩‍👩‍👧, \u200b zero width",
    "",
    " ",
    "\n",
]


def byte_level(pre, extra=(), merges=(), **more):
    """Metadata of a byte-level tokenizer whose merges each add one token."""
    tokens = [*BYTES, *(left + right for left, right in (merge.split(" ") for merge in merges)), *extra]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_of_the_packaged_model(smollm2, text):
    tokenizer = smollm2.tokenizer
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_ids_of_the_packaged_model(smollm2):
    """Ids that other readers of the same vocabulary give."""
    encode = lambda text: smollm2.tokenizer.encode(text).ids  # noqa: E731
    assert encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert encode("  multiple   spaces") == [216, 2701, 256, 5600]


def test_special_tokens_of_the_packaged_model(smollm2):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert "<|im_start|>" not in tokenizer.decode(ids)
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 49152


@pytest.mark.parametrize("pre", ["default", "gpt-2", "smollm", "llama-bpe", "llama3", "llama-v3", "qwen2"])
@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_of_every_splitting_rule(pre, text):
    tokenizer = build_tokenizer(byte_level(pre, add_bos_token=False), PATH)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def pieces(pre, text):
    """How a rule cuts text, seen through a vocabulary that merges nothing."""
    tokenizer = build_tokenizer(byte_level(pre, add_bos_token=False), PATH)
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("gpt-2", ["a", " 12345"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["a", " ", "123", "45"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "5"]),
    ],
)
def test_rules_differ_in_digits(pre, digits):
    assert pieces(pre, "a 12345") == digits


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_newer_rules_keep_contractions_of_any_case_and_leading_marks(pre):
    assert pieces(pre, "IT'S (word) a\n\n b") == ["IT", "'S", " (", "word", ")", " a", "\n\n", " b"]


def test_gpt2_contractions_are_lower_case():
    assert pieces("gpt-2", "IT'S it's") == ["IT", "'", "S", " it", "'s"]


def test_whole_words_skip_merges_for_llama3_only():
    # "abc" is a token that no merge produces.
    for pre, wanted in (("llama-bpe", 1), ("qwen2", 3)):
        tokenizer = build_tokenizer(byte_level(pre, extra=["abc"], add_bos_token=False), PATH)
        assert len(tokenizer.encode("abc").ids) == wanted


def test_merges_apply_in_order():
    tokenizer = build_tokenizer(byte_level("gpt-2", merges=["b c", "a b"]), PATH)
    assert tokenizer.encode("abc").tokens == ["a", "bc"]


def test_a_beginning_token_is_prepended_only_where_asked():
    def ids(pre, **more):
        return build_tokenizer(byte_level(pre, **more), PATH).encode("x")

    assert len(ids("llama-bpe").ids) == 2 and ids("llama-bpe").ids[0] == 0
    assert len(ids("llama-bpe", add_bos_token=False).ids) == 1
    assert len(ids("smollm").ids) == 1
    assert len(ids("smollm", add_bos_token=True).ids) == 2
    tokenizer = build_tokenizer(byte_level("llama-bpe"), PATH)
    assert len(tokenizer.encode("x", add_special_tokens=False).ids) == 1


def test_user_defined_tokens_are_kept_when_decoding():
    metadata = byte_level("qwen2", extra=["<tool>", "<|end|>"])
    metadata["tokenizer.ggml.token_type"][-2:] = [4, 3]
    tokenizer = build_tokenizer(metadata, PATH)
    ids = tokenizer.encode("a<tool>b<|end|>").ids
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<tool>b"


SENTENCEPIECE = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "l", "o"]
PIECES = {"he": -1.0, "ll": -2.0, "hell": -3.0, "hello": -4.0, "▁hello": -5.0, "el": -0.5}


def sentencepiece(**more):
    """Metadata of a small SentencePiece vocabulary with byte fallback."""
    plain = len(SENTENCEPIECE) - 259
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*SENTENCEPIECE, *PIECES],
        "tokenizer.ggml.scores": [0.0] * 259 + [-9.0] * plain + list(PIECES.values()),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (plain + len(PIECES)),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def test_sentencepiece_merges_by_score():
    tokenizer = build_tokenizer(sentencepiece(), PATH)
    # "el" scores best, so it is merged first and "hell" cannot form.
    assert tokenizer.encode("hello", add_special_tokens=False).tokens == ["▁", "h", "el", "l", "o"]
    best = sentencepiece()
    best["tokenizer.ggml.scores"][-1] = -99.0
    assert build_tokenizer(best, PATH).encode("hello").tokens == ["<s>", "▁hello"]


@pytest.mark.parametrize("text", ["hello hello", "Zürich 東京", "a  b", "tab\tline\n"])
def test_sentencepiece_round_trip_through_bytes(text):
    tokenizer = build_tokenizer(sentencepiece(), PATH)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_without_leading_space():
    tokenizer = build_tokenizer(sentencepiece(add_space_prefix=False, add_bos_token=False), PATH)
    assert tokenizer.encode("he").tokens == ["he"]
    assert tokenizer.decode(tokenizer.encode(" he").ids) == " he"


def test_no_tokenizer_in_the_file():
    assert build_tokenizer({}, PATH) is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level("poro-chat"), "unknown pre-tokenizer 'poro-chat'; known: default, gpt-2, smollm"),
        ({k: v for k, v in byte_level("smollm").items() if not k.endswith("pre")}, "unknown pre-tokenizer"),
        (byte_level("smollm") | {"tokenizer.ggml.model": "bert"}, "unknown tokenizer model 'bert'; known: gpt2, llama"),
        ({k: v for k, v in byte_level("smollm").items() if not k.endswith("merges")}, r"lacks tokenizer\.ggml\.merges"),
        (byte_level("smollm") | {"tokenizer.ggml.merges": ["zz yy"]}, "merges and tokens do not fit together"),
        (byte_level("smollm") | {"tokenizer.ggml.merges": ["abc"]}, "merge 'abc' is not a pair"),
        (byte_level("smollm") | {"tokenizer.ggml.token_type": [1]}, "256 tokens but 1 token types"),
        (byte_level("smollm", extra=["a"]), "holds 1 duplicates"),
        (byte_level("llama-bpe", bos_token_id=99999), "its id is 99999"),
        (sentencepiece(scores=[0.0]), "tokens but 1 scores"),
    ],
)
def test_refusals(metadata, message):
    with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
        build_tokenizer(metadata, PATH)


def test_a_vocabulary_larger_than_the_embedding_is_refused(reference_gguf):
    source = open_model(reference_gguf("llama3", byte_level("smollm", merges=["a b"])))
    with pytest.raises(ValueError, match="the tokenizer has ids up to 256, the embedding 97 rows"):
        _ = source.tokenizer
