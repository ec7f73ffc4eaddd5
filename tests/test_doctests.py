"""The examples in the docstrings print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def with_examples() -> list[str]:
    """Dotted names of the modules that hold a doctest."""
    paths = sorted(path for package in ("compressjax", "pallas_kernels") for path in (ROOT / package).rglob("*.py"))
    held = [path.relative_to(ROOT) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in held]


@pytest.mark.parametrize("name", with_examples())
def test_docstring_examples(name):
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0, f"{name} shows >>> where doctest finds no example"
    assert outcome.failed == 0
