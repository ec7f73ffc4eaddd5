"""The tokenizer inside a GGUF file, rebuilt with the ``tokenizers`` package.

Kinds: "gpt2" (byte-level BPE; ``tokenizer.ggml.pre`` names the splitting rule) and "llama" (SentencePiece BPE).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # token types of the GGUF specification


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Split:
    """How text is cut before the merges run.

    Attributes:
      pattern: the expression that finds one piece, or None for GPT-2's, which is built into ``ByteLevel``.
      single_digits: every digit stands alone.
      whole_words: a piece that is itself a token is not split into merges.
      bos: a beginning-of-sequence token is prepended unless the file says otherwise.
      nfc: text is put into Unicode normal form C first.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    bos: bool = False
    nfc: bool = False


# Expressions as published in the tokenizer.json of Llama 3 and Qwen 2; they differ in how many digits go together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = _Split()
_LLAMA3 = _Split(pattern=_WORDS % r"\p{N}{1,3}", whole_words=True, bos=True)
_SPLITS: Mapping[str, _Split] = MappingProxyType(
    {
        "default": _GPT2,
        "gpt-2": _GPT2,
        "smollm": _Split(single_digits=True),
        "llama-bpe": _LLAMA3,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "qwen2": _Split(pattern=_WORDS % r"\p{N}", nfc=True),
    }
)


def build_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer | None:
    """Tokenizer from GGUF metadata; None when the file carries none.

    Args:
      metadata: as in ``GGUFTable``.
      path: the file, for messages.

    Raises:
      ValueError: a kind or splitting rule we do not know, or lists that do not fit together.
    """
    if "tokenizer.ggml.model" not in metadata:
        return None
    model = metadata["tokenizer.ggml.model"]
    if model not in ("gpt2", "llama"):
        raise ValueError(f"{path}: unknown tokenizer model {model!r}; known: gpt2, llama")
    tokens = _field(metadata, "tokens", path)
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(f"{path}: {len(tokens)} tokens but {len(types)} token types")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(f"{path}: the token list holds {len(tokens) - len(vocab)} duplicates")
    build = _byte_level if model == "gpt2" else _sentencepiece
    tokenizer, prepend_bos = build(metadata, path, vocab, types)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types, strict=True) if k == _CONTROL]
    )
    tokenizer.add_tokens(
        [
            AddedToken(t, special=False, normalized=False)
            for t, k in zip(tokens, types, strict=True)
            if k == _USER_DEFINED
        ]
    )
    _prepend(tokenizer, metadata, tokens, prepend_bos, path)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], path: Path, vocab: dict[str, int], types: list[int]):
    name = metadata.get("tokenizer.ggml.pre", "")
    if name not in _SPLITS:
        raise ValueError(f"{path}: unknown pre-tokenizer {name!r}; known: {', '.join(_SPLITS)}")
    split = _SPLITS[name]
    merges = [tuple(merge.split(" ")) for merge in _field(metadata, "merges", path)]
    for merge in merges:
        if len(merge) != 2:
            raise ValueError(f"{path}: merge {' '.join(merge)!r} is not a pair")
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=split.whole_words)
    except Exception as error:  # the package raises its own bare Exception for merges outside the vocabulary
        raise ValueError(f"{path}: merges and tokens do not fit together: {error}") from error
    tokenizer = Tokenizer(model)
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split.single_digits else []
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.bos


def _sentencepiece(metadata: Mapping[str, Any], path: Path, vocab: dict[str, int], types: list[int]):
    """SentencePiece BPE merges the neighbours whose union scores best, so merge ranks follow from the scores."""
    scores = _field(metadata, "scores", path)
    if len(scores) != len(vocab):
        raise ValueError(f"{path}: {len(vocab)} tokens but {len(scores)} scores")
    pairs = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            if token[:cut] in vocab and token[cut:] in vocab:
                pairs.append((-scores[index], index, (token[:cut], token[cut:])))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[pair for _, _, pair in sorted(pairs, key=lambda entry: entry[:2])],
            unk_token=None if unknown is None else list(vocab)[unknown],
            fuse_unk=True,
            byte_fallback=_BYTE in types,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer, True


def _prepend(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], default: bool, path: Path) -> None:
    if not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is None or not 0 <= bos < len(tokens):
        raise ValueError(f"{path}: a beginning-of-sequence token is to be prepended, but its id is {bos}")
    token = tokens[bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, bos)]
    )


def _field(metadata: Mapping[str, Any], key: str, path: Path) -> list:
    if f"tokenizer.ggml.{key}" not in metadata:
        raise ValueError(f"{path}: the metadata lacks tokenizer.ggml.{key}")
    return metadata[f"tokenizer.ggml.{key}"]
