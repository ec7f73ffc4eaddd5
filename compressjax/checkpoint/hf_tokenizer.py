"""Tokenizer, chat template and special ids of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compressjax.checkpoint.json_file import read_json


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """``tokenizer.json`` without the truncation and padding it may carry; None when the folder has no tokenizer.

    Saved truncation would silently cut calibration and evaluation text.

    Raises:
      ValueError: the file is damaged, or there is only a SentencePiece ``tokenizer.model``.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tokenizer.model").is_file():
            raise ValueError(f"{folder} holds tokenizer.model only; save the tokenizer as tokenizer.json first")
        return None
    return parse_tokenizer(path.read_text(encoding="utf-8"), str(path))


def parse_tokenizer(text: str, where: str) -> Tokenizer:
    """A tokenizer from the text of a tokenizer.json, without truncation and padding.

    Raises:
      ValueError: not a tokenizer; names ``where``.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises a bare Exception
        raise ValueError(f"{where} is not a readable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_chat_template(folder: Path) -> str | None:
    """The default chat template: ``chat_template.jinja``, else ``chat_template`` of tokenizer_config.json.

    Raises:
      ValueError: tokenizer_config.json is damaged.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    stated = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(stated, list):
        named = {entry.get("name"): entry.get("template") for entry in stated}
        return named.get("default")
    return stated


def read_eos_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a generation: those of generation_config.json, else of config.json; either may list several."""
    path = folder / "generation_config.json"
    stated = read_json(path).get("eos_token_id") if path.is_file() else None
    if stated is None:
        stated = config.get("eos_token_id")
    if stated is None:
        return ()
    return tuple(dict.fromkeys(stated)) if isinstance(stated, list) else (stated,)
