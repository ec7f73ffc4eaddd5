"""Questions from JSON-lines files, in the layouts of the Mosaic evaluation gauntlet.

Multiple choice: ``{"query", "choices", "gold"}``, or as a schema ``{"context_options", "continuation", "gold"}`` where
the options differ before a shared ending. Last word: ``{"context", "continuation"}``.
"""

import itertools
import os
from typing import Any, NamedTuple

from compressjax.data.text_files import read_jsonl


class MultipleChoice(NamedTuple):
    """One question.

    Attributes:
      contexts: what stands before each choice; all alike unless the file is a schema.
      choices: the answers as given, without the space before them.
      gold: index of the right one.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int


class LastWord(NamedTuple):
    """A passage without its last word, and the word."""

    context: str
    word: str


def read_multiple_choice(
    path: str | os.PathLike[str], *, limit: int | None = None, suffix: str = "\nAnswer:"
) -> tuple[MultipleChoice, ...]:
    """Reads multiple-choice questions.

    Args:
      path: a JSON-lines file.
      limit: read this many from the start; None for all.
      suffix: put after each query that does not end with it already; not used for schemas.

    Raises:
      FileNotFoundError: no file there.
      ValueError: ``limit`` below 1, or a malformed line; names the file and the line.
    """
    items = []
    for number, row in _rows(path, limit):
        where = f"{os.fspath(path)}, line {number}"
        if "context_options" in row:
            contexts = _texts(row, "context_options", where)
            choices = (_text(row, "continuation", where),) * len(contexts)
        else:
            choices = _texts(row, "choices", where)
            query = _text(row, "query", where)
            contexts = (query if query.endswith(suffix) else query + suffix,) * len(choices)
        gold = row.get("gold")
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise ValueError(f"{where}: gold must be an integer from 0 to {len(choices) - 1}, got {gold!r}")
        items.append(MultipleChoice(contexts, choices, gold))
    return tuple(items)


def read_last_words(path: str | os.PathLike[str], *, limit: int | None = None) -> tuple[LastWord, ...]:
    """Reads last-word questions (LAMBADA; Paperno et al., 2016).

    Args:
      path: a JSON-lines file.
      limit: read this many from the start; None for all.

    Raises:
      FileNotFoundError: no file there.
      ValueError: ``limit`` below 1, or a malformed line; names the file and the line.
    """
    return tuple(
        LastWord(_text(row, "context", where), _text(row, "continuation", where))
        for number, row in _rows(path, limit)
        for where in (f"{os.fspath(path)}, line {number}",)
    )


def _rows(path: str | os.PathLike[str], limit: int | None) -> list[tuple[int, dict[str, Any]]]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 question, got {limit}")
    return list(itertools.islice(read_jsonl(path), limit))


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {field} must be a non-blank string, got {value!r:.60}")
    return value


def _texts(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    values = row.get(field)
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f"{where}: {field} must be a list of at least two strings, got {values!r:.60}")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: {field} must hold non-blank strings, got {value!r:.60}")
    return tuple(values)
