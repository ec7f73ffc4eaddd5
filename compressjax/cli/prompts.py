"""A user's prompt as tokens, and a continuation as text that grows."""

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from compressjax.checkpoint import LoadedModel
from compressjax.models.chat import render_chat

_INCOMPLETE = "\ufffd"


def prompt_ids(model: LoadedModel, prompt: str, *, chat: bool) -> list[int]:
    """Tokens of a prompt, put into the model's chat template when ``chat``.

    Raises:
      ValueError: no tokenizer, no chat template, or an empty prompt.
    """
    tokenizer = _tokenizer(model)
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    if not chat:
        return tokenizer.encode(prompt).ids
    if model.chat_template is None:
        raise ValueError(f"{model.name} has no chat template; leave out --chat")
    text = render_chat(
        model.chat_template,
        [{"role": "user", "content": prompt}],
        bos_token=_special(tokenizer, model.bos_id),
        eos_token=_special(tokenizer, model.eos_id),
    )
    return tokenizer.encode(text, add_special_tokens=False).ids


def pieces(model: LoadedModel, ids: Iterable[int]) -> Iterator[str]:
    """Text of tokens as they come; bytes of an unfinished character wait for the rest of it."""
    tokenizer = _tokenizer(model)
    seen: list[int] = []
    written = 0
    for token in ids:
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith(_INCOMPLETE):
            yield text[written:]
            written = len(text)
    if seen and (rest := tokenizer.decode(seen)[written:]):
        yield rest


def _tokenizer(model: LoadedModel) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it can neither read a prompt nor write")
    return model.tokenizer


def _special(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.id_to_token(token) or ""
