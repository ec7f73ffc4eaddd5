"""A tokenizer as GGUF metadata.

GGUF keeps tokens and merges, and names the rule by which text is cut before the merges run. A tokenizer carries the
rule itself, so each rule known here is tried on text in which they all differ, and the tokenizer is refused unless one
of them gives the very same tokens.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compressjax.checkpoint.gguf_tokenizer import build_tokenizer
from compressjax.exchange.gguf_metadata import Metadata

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # token types of the GGUF specification
_RULES = ("smollm", "llama-bpe", "qwen2", "gpt-2")
_ENDS = ("eos", "eot", "eom")
_PROBES = (
    "It's 12345 + 67, they've SAID 'so'; IT'S 3.14159 (word) a/b_c",
    "def f(x):\n\treturn {\r\n\r\n\t\t'a': x ** 2,  # two\n    }\n\n\n   end  ",
    "Zürich, e\u0301toile, Ελλάδα, Привет, 東京2024年, नमस्ते, 👩‍👩‍👧 ٣٤٥",
)


def tokenizer_metadata(
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    eos_ids: tuple[int, ...] = (),
    bos_id: int | None = None,
    chat_template: str | None = None,
) -> Metadata:
    """The ``tokenizer.*`` metadata of a byte-level or SentencePiece BPE tokenizer.

    Args:
      tokenizer: any tokenizer of the ``tokenizers`` package.
      vocab_size: rows of the embedding; ids the tokenizer lacks are filled up with unused tokens.
      eos_ids: ids that end a generation, the main one first; GGUF has room for three.
      bos_id: id of the beginning-of-sequence token.
      chat_template: Jinja template, or None.

    Raises:
      ValueError: another kind of tokenizer, one without merges or larger than the vocabulary, or a rule of cutting
        GGUF has no name for.
    """
    raw = json.loads(tokenizer.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise ValueError(f"GGUF export writes BPE tokenizers, this one is {model['type']}")
    tokens, types = _tokens(tokenizer, raw, vocab_size)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not merges:
        raise ValueError("the tokenizer has no merges, and GGUF cannot hold an empty list")
    shared: Metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    shared |= {f"tokenizer.ggml.{key}_token_id": index for key, index in zip(_ENDS, eos_ids, strict=False)}
    if bos_id is not None:
        shared["tokenizer.ggml.bos_token_id"] = bos_id
    # Always said, since some rules prepend the token unless told not to.
    shared["tokenizer.ggml.add_bos_token"] = tokenizer.encode("a").ids[:1] == [bos_id]
    if model.get("unk_token") is not None:
        shared["tokenizer.ggml.unknown_token_id"] = tokenizer.token_to_id(model["unk_token"])
    if chat_template is not None:
        shared["tokenizer.chat_template"] = chat_template
    for candidate in _candidates(model, merges, tokens):
        if _cuts_alike(tokenizer, build_tokenizer(shared | candidate, Path("export"))):
            return shared | candidate
    raise ValueError(
        "the tokenizer cuts text by a rule that GGUF has no name for here (known: "
        f"{', '.join(_RULES)}, SentencePiece BPE); export without a tokenizer, or keep it beside the file"
    )


def _tokens(tokenizer: Tokenizer, raw: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(by_id) >= vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(by_id)}, the model {vocab_size} tokens")
    added = {entry["id"]: _CONTROL if entry["special"] else _USER_DEFINED for entry in raw["added_tokens"]}
    unknown, fallback = raw["model"].get("unk_token"), raw["model"].get("byte_fallback")

    def kind(index: int) -> int:
        token = by_id.get(index)
        if token is None:
            return _UNUSED
        if token == unknown:
            return _UNKNOWN
        if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return _BYTE
        return added.get(index, _NORMAL)

    ids = range(vocab_size)
    return [by_id.get(index, f"[PAD{index}]") for index in ids], [kind(index) for index in ids]


def _candidates(model: Mapping[str, Any], merges: list[str], tokens: list[str]) -> Iterator[Metadata]:
    if not model.get("byte_fallback"):
        for rule in _RULES:
            yield {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.merges": merges}
        return
    # SentencePiece merges the pair whose union scores best, so a rank turned round is a score.
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), rank)
    scores = [-float(first.get(token, 0)) for token in tokens]
    for prefix in (True, False):
        yield {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.add_space_prefix": prefix,
        }


def _cuts_alike(first: Tokenizer, second: Tokenizer | None) -> bool:
    if second is None:
        return False
    pieces = [t.pre_tokenizer for t in (first, second)]
    if None not in pieces:
        # A small vocabulary may hide in its tokens where two rules differ.
        cut = [[[piece for piece, _ in p.pre_tokenize_str(text)] for text in _PROBES] for p in pieces]
        if cut[0] != cut[1]:
            return False
    return all(first.encode(text).ids == second.encode(text).ids for text in _PROBES)
