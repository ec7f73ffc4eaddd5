"""JSON files of a checkpoint folder."""

import json
from pathlib import Path


def read_json(path: Path) -> dict:
    """An object from a JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or not an object; names the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}") from None
    return parse_object(data, str(path))


def parse_object(data: bytes, where: str) -> dict:
    """An object from JSON text.

    Raises:
      ValueError: not JSON, or not an object; names ``where``.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} should hold a JSON object, got {type(value).__name__}")
    return value
