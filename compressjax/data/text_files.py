"""Plain text and JSON-lines files as documents."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole of a UTF-8 text file.

    Line ends become ``\\n``; a byte order mark is dropped.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: no file there.
      ValueError: the path is a folder, or the file is empty, blank, not UTF-8 or holds NUL (a binary file).
    """
    file = _existing(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: byte {error.start} cannot be decoded ({error.reason})") from None
    if "\0" in text:
        raise ValueError(f"{file} is not text: it holds a NUL character at position {text.index(chr(0))}")
    if not text.strip():
        raise ValueError(f"{file} holds no text")
    return text


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers, from 1; blank lines are passed over.

    Args:
      path: the file.

    Raises:
      FileNotFoundError: no file there.
      ValueError: as `read_text`; or a line is not one JSON object, or holds NaN or an infinity, which JSON does not
        have; names the file and the line.
    """
    # Only "\n" ends a line: str.splitlines would also cut at separators that may stand inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: not valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{os.fspath(path)}, line {number}: expected a JSON object, got {type(value).__name__}")
        yield number, value


def read_documents(path: str | os.PathLike[str], *, field: str = "text") -> tuple[str, ...]:
    """The documents of a file: one per line of ``*.jsonl``, else the whole file as one.

    Args:
      path: a text file, or a JSON-lines file whose name ends in ``.jsonl``.
      field: the field of each JSON object that holds the text; not used for plain text.

    Raises:
      FileNotFoundError, ValueError: as `read_text` and `read_jsonl`; or a line lacks the field, or the field is not a
        string with something in it.
    """
    if Path(path).suffix.lower() != ".jsonl":
        return (read_text(path),)
    documents = []
    for number, row in read_jsonl(path):
        where = f"{os.fspath(path)}, line {number}"
        if field not in row:
            raise ValueError(f"{where}: no field {field!r}; the line has {', '.join(map(repr, row)) or 'none'}")
        value = row[field]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where}: field {field!r} must be a non-blank string, got {value!r:.60}")
        documents.append(value)
    return tuple(documents)


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{file} is a folder, expected a text file")
    if not file.is_file():
        raise FileNotFoundError(f"no file at {file}")
    return file


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
