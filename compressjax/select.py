"""Which weights a verb touches: paths, rules by path, and reading and replacing weights in a tree."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from compressjax.leaf.registration import is_leaf


def weights(params: Any) -> dict[str, Any]:
    """Every array and compressed leaf of a tree of dicts, by its path of keys joined with "/".

    Raises:
      TypeError: when the tree holds containers other than dicts (convert flax states to pure dicts first).
    """
    found: dict[str, Any] = {}
    _walk(params, (), found)
    return found


def _walk(node, path, found):
    if isinstance(node, Mapping):
        for key, value in node.items():
            _walk(value, (*path, str(key)), found)
    elif node is None:
        return
    elif is_leaf(node) or hasattr(node, "dtype"):
        found["/".join(path)] = node
    else:
        raise TypeError(f"params must be nested dicts of arrays; found {type(node).__name__} at {'/'.join(path)!r}")


def replace(params: Any, new: Mapping[str, Any]) -> Any:
    """A copy of ``params`` with the weights at the paths of ``new`` replaced.

    Raises:
      KeyError: when a path of ``new`` is not in ``params``.
    """
    missing = set(new) - set(weights(params))
    if missing:
        raise KeyError(f"params have no weight at {sorted(missing)}")
    return _rebuild(params, (), new)


def _rebuild(node, path, new):
    if isinstance(node, Mapping):
        return {key: _rebuild(value, (*path, str(key)), new) for key, value in node.items()}
    return new.get("/".join(path), node)


@functools.cache
def _pattern(glob: str) -> re.Pattern[str]:
    out, at = "", 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out, at = out + "(?:[^/]+/)*", at + 3
        elif glob.startswith("**", at):
            out, at = out + ".*", at + 2
        elif glob[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif glob[at] == "?":
            out, at = out + "[^/]", at + 1
        else:
            out, at = out + re.escape(glob[at]), at + 1
    return re.compile(out)


def matches(glob: str, path: str) -> bool:
    """Whether a rule's pattern names a weight, by its own path or by that of the module which holds it.

    ``*`` stands for part of one key, ``**`` for any number of keys: "**/mlp/*" names "blocks/mlp/up/kernel".
    """
    pattern = _pattern(glob)
    return bool(pattern.fullmatch(path) or pattern.fullmatch(path.rpartition("/")[0]))


def is_matrix(path: str, weight: Any) -> bool:
    """Whether a weight is compressed when no rule names it: a matrix (or a stack of them) called "kernel"."""
    if path.rpartition("/")[2] != "kernel":
        return False
    if is_leaf(weight):
        return True
    return weight.ndim >= 2 and jnp.issubdtype(weight.dtype, jnp.floating)


def resolve(params: Any, rules: Mapping[str, Any]) -> dict[str, Any]:
    """The config of every weight that the rules select, by path; the first matching rule wins.

    A pattern that ends in a weight's own key ("embed/embedding") reaches weights that are not kernels.

    Args:
      params: tree of dicts.
      rules: pattern -> config, or None to leave alone.

    Returns:
      path -> config, without the weights that are left alone.

    Raises:
      ValueError: when a pattern names no weight at all, or nothing is selected.
    """
    found = weights(params)
    used: set[str] = set()
    chosen: dict[str, Any] = {}
    for path, weight in found.items():
        key = path.rpartition("/")[2]
        named = [g for g in rules if matches(g, path) and (is_matrix(path, weight) or g.rpartition("/")[2] == key)]
        used.update(named)
        if named and rules[named[0]] is not None:
            chosen[path] = rules[named[0]]
    idle = [g for g in rules if g not in used]
    if idle:
        kernels = [p for p, w in found.items() if is_matrix(p, w)]
        raise ValueError(f"rules {idle} match no weight; weights are {kernels}")
    return chosen
