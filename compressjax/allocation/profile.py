"""A sensitivity profile: what a model loses when one layer, and nothing else, is compressed to some level.

CompactifAI profiles every layer at every bond before it decides (Tomut et al., 2024, arXiv 2401.14109); the profile is
the same for any method. Its database goes to any search of ``allocation``.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from compressjax.allocation.database import LevelDatabase
from compressjax.leaf.by_layer import by_layer
from compressjax.ops import dense, logical_shape, nbits
from compressjax.select import is_matrix, matches, replace, weights

Place = tuple[str, int | None]
"""A weight's path, and its layer in a stack; None for a weight that is no stack."""


class Profile(NamedTuple):
    """Sensitivity of every item at every level.

    Attributes:
      database: names of the items, labels of the levels, exact bits, and as errors the rise of the metric, at least 0.
      baseline: the metric of the original model.
      metric: float64 ``[items, levels]``.
      items: the places of every item.
    """

    database: LevelDatabase
    baseline: float
    metric: np.ndarray
    items: Mapping[str, tuple[Place, ...]]


def items_by_layer(params: Any, patterns: Mapping[str, str]) -> dict[str, tuple[Place, ...]]:
    """Items of a profile: for every pattern one per layer of the stacks it names, "3/mlp" for layer 3 of "mlp".

    Args:
      params: nested dicts of arrays; stacks are ``[layers, in, out]``.
      patterns: name -> pattern of paths; weights that are no stacks make one item together.

    Raises:
      ValueError: a pattern that names no kernel, or stacks of different depths.
    """
    kernels = {path: w for path, w in weights(params).items() if is_matrix(path, w)}
    found: dict[str, tuple[Place, ...]] = {}
    for name, pattern in patterns.items():
        paths = [path for path in kernels if matches(pattern, path)]
        depths = {logical_shape(kernels[path])[:-2] for path in paths}
        if len(depths) != 1:
            raise ValueError(f"pattern {pattern!r} must name kernels of one depth, got {sorted(depths)} for {paths}")
        (lead,) = depths
        if len(lead) > 1:
            raise ValueError(f"pattern {pattern!r} must name single weights or simple stacks, got stacks {lead}")
        if lead:
            found |= {f"{layer}/{name}": tuple((path, layer) for path in paths) for layer in range(lead[0])}
        else:
            found[name] = tuple((path, None) for path in paths)
    return found


def profile_layers(
    params: Any,
    versions: Mapping[Hashable, Any],
    items: Mapping[str, Sequence[Place]],
    evaluate: Callable[[Any], float],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Measures a model with one item at one level, for all items and levels.

    Args:
      params: the original, dense tree.
      versions: level -> the tree compressed to it, as a verb returns it; ``params`` itself is the level at which items
        stay as they are, and is not measured again.
      items: name -> places that are compressed together, see :func:`items_by_layer`.
      evaluate: ``params -> number``, lower is better, such as nats per token. It gets dense trees of one structure, so
        a jitted function is compiled once.
      progress: called with (measurements done, measurements) after each.

    Raises:
      ValueError: no items or levels, or a place that is not in the tree.
    """
    if not versions or not items:
        raise ValueError(f"a profile needs items and levels, got {len(items)} and {len(versions)}")
    original = weights(params)
    trees = {level: weights(tree) for level, tree in versions.items()}
    for name, places in items.items():
        for path, layer in places:
            if path not in original or (layer is not None and not 0 <= layer < original[path].shape[0]):
                raise ValueError(f"item {name!r} names {path!r}, layer {layer}, which params have not")
    names, levels = tuple(items), tuple(versions)
    cost = np.zeros((len(names), len(levels)), np.int64)
    metric = np.zeros(cost.shape)
    baseline = float(evaluate(params))
    for i, name in enumerate(names):
        for c, level in enumerate(levels):
            changed: dict[str, Any] = {}
            for path, layer in items[name]:
                leaf = _slice(trees[level][path], layer)
                cost[i, c] += nbits(leaf)
                if trees[level][path] is not original[path]:
                    old = changed.get(path, original[path])
                    new = dense(leaf).astype(old.dtype)
                    changed[path] = new if layer is None else old.at[layer].set(new)
            metric[i, c] = float(evaluate(replace(params, changed))) if changed else baseline
            if progress is not None:
                progress(i * len(levels) + c + 1, metric.size)

    def materialize(name: str, level: int) -> dict[Place, Any]:
        return {place: _slice(trees[levels[level]][place[0]], place[1]) for place in items[name]}

    database = LevelDatabase(
        names=names,
        levels=levels,
        cost=cost,
        error=np.maximum(metric - baseline, 0.0),
        materialize=materialize,
    )
    return Profile(database, baseline, metric, {name: tuple(places) for name, places in items.items()})


def _slice(leaf, layer):
    return leaf if layer is None else jax.tree.map(lambda a: a[layer], leaf)


def chosen_params(params: Any, profile: Profile, state: Sequence[int] | np.ndarray) -> Any:
    """The tree with every item at its chosen level; stacks whose layers differ become ``ByLayer`` leaves.

    Args:
      params: the original tree; what no item names stays.
      profile: from :func:`profile_layers`.
      state: level index per item.
    """
    original = weights(params)
    layers: dict[str, list[Any]] = {}
    new: dict[str, Any] = {}
    materialize = profile.database.materialize
    if materialize is None:
        raise ValueError("the profile's database must have materialize")
    for name, level in zip(profile.database.names, state, strict=True):
        for (path, layer), leaf in materialize(name, int(level)).items():
            if layer is None:
                new[path] = leaf
            else:
                layers.setdefault(path, list(original[path]))[layer] = leaf
    return replace(params, new | {path: by_layer(own) for path, own in layers.items()})
