"""The 61 systems this library is to hold: what each is, where it lives, and whether it is there yet.

Plain data without imports of the library, so that tables and the command line can list it at no cost. What was
measured is not written here: it is read from the committed results when a table is made.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "quantization": "weights as few-bit codes",
        "factorization": "weights as products of small factors",
        "sparsity": "weights left out",
        "kvcache": "smaller attention caches",
        "allocation": "which method, how many bits, where",
        "training": "compression while training or tuning",
        "distributed": "fewer bytes between workers",
        "codecs": "images, sound and features as bitstreams",
        "entropy": "models that drive an entropy coder",
        "media": "what to do with media once it was compressed",
        "retrieval": "compressed indexes",
        "science": "compressed representations in the sciences",
        "evaluation": "what compression costs, beyond perplexity",
        "models": "networks that are compressed by construction",
    }
)
"""Families in reading order; each is a folder of the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One system.

    Attributes:
      slug: short name, also that of its claim script.
      name: as its authors call it.
      about: what it does, in one line.
      paper: arXiv identifier.
      family: key of :data:`FAMILIES`.
      verb: how a user calls it: a public verb, "transform" for optax transforms and training leaves, "evaluate" for
        benchmarks, "apply" for models and whole pipelines.
      state: "built" once code, tests and claim script are there, "done" once the claim has been seen to hold as well.
      config: "module:name" of its config, None while planned.
      test, claim: paths in the repository, None while planned.
      figure: name of the claim row that tables show for it.
    """

    slug: str
    name: str
    about: str
    paper: str
    family: str
    verb: str
    state: Literal["done", "built", "planned"] = "planned"
    config: str | None = None
    test: str | None = None
    claim: str | None = None
    figure: str | None = None

    @property
    def url(self) -> str:
        """Address of the paper's abstract."""
        return f"https://arxiv.org/abs/{self.paper}"


def _read() -> tuple[Method, ...]:
    text = files("compressjax").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return tuple(Method(**fields) for fields in tomllib.loads(text)["method"])


METHODS: tuple[Method, ...] = _read()
"""Every system, families together."""


def method(slug: str) -> Method:
    """The system of that name.

    Raises:
      KeyError: no such system.
    """
    for entry in METHODS:
        if entry.slug == slug:
            return entry
    raise KeyError(f"no method {slug!r}; known: {', '.join(entry.slug for entry in METHODS)}")


def measured(entry: Method, results: Path) -> dict[str, Any] | None:
    """The claim row that speaks for a method.

    Args:
      entry: the method.
      results: folder of committed results.

    Returns:
      The row, or None when the method names no figure or its claim has not been run.

    Raises:
      ValueError: the result lacks the row that the catalogue names, so one of the two is out of date.
    """
    path = results / f"claims_{entry.slug}.json"
    if entry.figure is None or not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["name"] == entry.figure:
            return row
    raise ValueError(f"{path.name} has no row {entry.figure!r}, which the catalogue names for {entry.slug}")
