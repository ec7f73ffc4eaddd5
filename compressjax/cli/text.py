"""From the name of a text to windows of a model's tokens."""

from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from compressjax.checkpoint import ModelSource
from compressjax.data.resolve import text_from
from compressjax.data.windows import windows


def tokenizer_of(source: ModelSource) -> Tokenizer:
    """The model's tokenizer.

    Raises:
      ValueError: it has none, or a damaged one.
    """
    if source.tokenizer is None:
        raise ValueError(f"{source.path} has no tokenizer, so it can read no text; put tokenizer.json beside the model")
    return source.tokenizer


def token_windows(
    source: ModelSource, text: str, count: int, length: int, spread: Literal["start", "even"]
) -> np.ndarray:
    """Windows int32 ``[count, length]`` of a text by name.

    Raises:
      FileNotFoundError: no such text.
      ValueError: an empty or too short text, a window longer than the model's context, a tokenizer of another model.
    """
    if length > source.config.max_positions:
        # Before the text is read and tokenised, which takes seconds.
        raise ValueError(f"length: windows of {length} tokens exceed the context of {source.config.max_positions}")
    ids = tokenizer_of(source).encode(text_from(text), add_special_tokens=False).ids
    limits = {"context": source.config.max_positions, "vocab_size": source.config.vocab_size}
    return windows(ids, length, count, spread=spread, **limits)


def scored_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """UTF-8 bytes of the tokens of every window ``[N, T]`` but its first, which no model predicts."""
    first, rest = tokens[:, :1].tolist(), tokens.tolist()
    decode = tokenizer.decode_batch
    whole = decode(rest, skip_special_tokens=False)
    head = decode(first, skip_special_tokens=False)
    return max(1, sum(len(w.encode()) - len(h.encode()) for w, h in zip(whole, head, strict=True)))
