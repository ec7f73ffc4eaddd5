"""Leaves whose layers share arrays, and how a scan over layers takes them.

Most leaves lead with the layer axis in every array, so a scan slices them like any parameter. Where layers hold
different amounts (numbers of blocks, or compression of different kinds), that would pad each to the largest. Such a
leaf keeps one pool for all layers and, per layer, where its own parts stand in the pool.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

_FIELDS: dict[type, tuple[str, ...]] = {}
_ASKED: dict[type, Callable[[Any], bool]] = {}


def register_pool(kind: type, fields: tuple[str, ...], is_pooled: Callable[[Any], bool]) -> None:
    """Names a leaf type's fields that layers may share, and how to see that they do."""
    _FIELDS[kind], _ASKED[kind] = fields, is_pooled


def is_pooled(w: Any) -> bool:
    """Whether the layers of a weight share arrays."""
    return type(w) in _ASKED and _ASKED[type(w)](w)


def split_pools(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Takes the pools out of a tree, so that what remains leads with the layer axis everywhere.

    Args:
      tree: a tree of stacked parameters.

    Returns:
      The tree with pooled leaves emptied of their pools, for the ``xs`` of a scan over layers; and a function that
      puts the pools back into the slice of one layer.
    """
    weights, structure = jax.tree.flatten(tree, is_leaf=lambda w: type(w) in _FIELDS)
    pools = [{name: getattr(w, name) for name in _FIELDS[type(w)]} if is_pooled(w) else None for w in weights]
    bare = [
        w if pool is None else dataclasses.replace(w, **dict.fromkeys(pool))
        for w, pool in zip(weights, pools, strict=True)
    ]

    def join(layer: Any) -> Any:
        parts = structure.flatten_up_to(layer)
        full = [w if pool is None else dataclasses.replace(w, **pool) for w, pool in zip(parts, pools, strict=True)]
        return jax.tree.unflatten(structure, full)

    return jax.tree.unflatten(structure, bare), join
