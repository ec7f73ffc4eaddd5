"""Tokenizer and generation settings of a Hugging Face folder."""

import json
from pathlib import Path

from tokenizers import Tokenizer


def write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    chat_template: str | None,
    eos_ids: tuple[int, ...],
    bos_id: int | None,
    max_positions: int,
) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
      folder: existing folder.
      tokenizer: any tokenizer of the ``tokenizers`` package.
      chat_template: Jinja template, or None.
      eos_ids: ids that end a generation, the main one first.
      bos_id: id of the beginning-of-sequence token.
      max_positions: context length in tokens.

    Raises:
      ValueError: a special id that the tokenizer lacks.
    """

    def token(index: int, name: str) -> str:
        text = tokenizer.id_to_token(index)
        if text is None:
            raise ValueError(f"{name} {index} is not an id of the tokenizer")
        return text

    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
    }
    if eos_ids:
        settings["eos_token"] = token(eos_ids[0], "eos_ids[0]")
    if bos_id is not None:
        settings["bos_token"] = token(bos_id, "bos_id")
    if chat_template is not None:
        settings["chat_template"] = chat_template
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def write_generation_config(folder: Path, *, eos_ids: tuple[int, ...], bos_id: int | None) -> None:
    """Writes generation_config.json with the ids that start and end a generation, as far as they are known."""
    settings: dict[str, object] = {}
    if bos_id is not None:
        settings["bos_token_id"] = bos_id
    if eos_ids:
        settings["eos_token_id"] = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)
    write_json(folder / "generation_config.json", settings)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
