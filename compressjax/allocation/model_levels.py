"""Every weight of a model at every level: what a search over bits, ranks or methods chooses from.

Each level is a method config, or None for a weight left as it is; levels of one model may be of different families. A
layer of a stacked weight is an item of its own, named as in ``compress_blocks(choices=...)``: "blocks/3/attn/q/kernel".
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from compressjax.allocation.database import LevelDatabase, checked_state
from compressjax.calibration.records import Record
from compressjax.driver import compress
from compressjax.leaf import by_layer
from compressjax.numerics.linalg import quadratic
from compressjax.ops import dense, logical_shape, nbits
from compressjax.select import replace, resolve, weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModelLevels:
    """A model's weights at all levels.

    Attributes:
      db: names, configs as levels, exact bits as cost, relative output error.
      params: the model the levels were made from.
      leaves: by path of a weight, its compressed form at each level, stacked over layers where the weight is.
      dense: by path, float ``[C, L, in, out]``: the same materialised, for a search that runs the model.
    """

    db: LevelDatabase
    params: Any
    leaves: Mapping[str, tuple[Any, ...]]
    dense: Mapping[str, jax.Array]

    def model(self, state: ArrayLike) -> Any:
        """The compressed model of a choice ``[N]``; layers of one weight that differ become a ``ByLayer`` leaf.

        Raises:
          ValueError: not a choice.
        """
        chosen, first, new = checked_state(self.db, np.asarray(state)), 0, {}
        for path, variants in self.leaves.items():
            layers = self.dense[path].shape[1]
            own = chosen[first : first + layers]
            first += layers
            if len(logical_shape(variants[0])) == 2:
                new[path] = variants[own[0]]
            else:
                new[path] = by_layer([_layer(variants[level], at) for at, level in enumerate(own)])
        return replace(self.params, new)

    def choices(self, state: ArrayLike) -> dict[str, Any]:
        """Configs by name, as ``compress_blocks`` and ``compress_model`` take them."""
        chosen = checked_state(self.db, np.asarray(state))
        return {name: self.db.levels[level] for name, level in zip(self.db.names, chosen, strict=True)}


def model_levels(
    params: Any,
    levels: Sequence[Any],
    *,
    stats: Mapping[str, Record] | None = None,
    paths: str = "**",
    dtype: DTypeLike = jnp.float32,
    progress: Callable[[int, int], None] | None = None,
) -> ModelLevels:
    """Compresses every selected weight at every level.

    The error of an item is ``tr(EᵀHE) / tr(WᵀHW)`` with H the sum of ``x xᵀ`` over its inputs, or the identity where
    ``stats`` has no Hessian of it. Memory is ``C`` times the selected weights in ``dtype``.

    Args:
      params: nested dicts; kernels ``[in, out]`` or stacked ``[L, in, out]``.
      levels: method configs from the smallest result to the largest; None leaves a weight as it is.
      stats: records by path, from ``calibrate``.
      paths: pattern of the weights.
      dtype: of the materialised levels.
      progress: called with (levels done, levels).

    Raises:
      ValueError: fewer than two levels, levels that do not rise in cost, or what a method refuses.
    """
    if len(levels) < 2:
        raise ValueError(f"levels must be at least two method configs, got {len(levels)}")
    found = weights(params)
    names = [path for path in resolve(params, {paths: True}) if len(logical_shape(found[path])) in (2, 3)]
    leaves: dict[str, list[Any]] = {path: [] for path in names}
    for number, cfg in enumerate(levels):
        made = params if cfg is None else compress(params, {paths: cfg}, stats=stats)[0]
        for path in names:
            leaves[path].append(weights(made)[path])
        if progress is not None:
            progress(number + 1, len(levels))
    items, costs, errors, materialised = [], [], [], {}
    for path in names:
        lead = logical_shape(found[path])[:-2]
        count = lead[0] if lead else 1
        items += [_item(path, layer) for layer in range(count)] if lead else [path]
        costs.append(np.tile([[nbits(w) // count for w in leaves[path]]], (count, 1)))
        stack = jnp.stack([dense(w).astype(dtype).reshape(count, *logical_shape(w)[-2:]) for w in leaves[path]])
        record = None if stats is None else stats.get(path)
        xtx = None if record is None or record.xtx is None else record.xtx.reshape(count, *record.xtx.shape[-2:])
        original = dense(found[path]).astype(jnp.float32).reshape(stack.shape[1:])
        errors.append(np.asarray(_relative_errors(stack, original, xtx), np.float64))
        materialised[path] = stack
    cost = np.concatenate(costs)
    if (np.diff(cost, axis=1) <= 0).any():
        raise ValueError(f"levels must rise in bits, got {cost[0].tolist()} bits for {items[0]}")
    db = LevelDatabase(names=tuple(items), levels=tuple(levels), cost=cost, error=np.concatenate(errors))
    return ModelLevels(
        db=db, params=params, leaves={path: tuple(own) for path, own in leaves.items()}, dense=materialised
    )


def assemble_dense(data: tuple[Any, Mapping[str, jax.Array]], state: jax.Array) -> Any:
    """The model of a choice with its weights materialised; the choice may be traced, so one program serves all.

    Args:
      data: parameters, and ``dense`` of a :class:`ModelLevels`.
      state: int ``[N]``.
    """
    params, stacks = data
    found, first, new = weights(params), 0, {}
    for path, stack in stacks.items():
        layers = stack.shape[1]
        own = jax.lax.slice_in_dim(state, first, first + layers)
        first += layers
        # A gather per layer: a one-hot product would read every level.
        new[path] = jax.vmap(lambda level, at, s=stack: s[level, at])(own, jnp.arange(layers)).reshape(
            logical_shape(found[path])
        )
    return replace(params, new)


@jax.jit
def _relative_errors(stack, original, xtx):
    """``stack [C, L, i, o]`` against ``original [L, i, o]``, weighted by ``xtx [L, i, i]``: ``[L, C]``."""

    def energy(e, h):
        return jnp.sum(e * e) if h is None else quadratic(e, h)

    def of_layer(args):
        own, w, h = args
        return jax.lax.map(lambda level: energy(w - level.astype(jnp.float32), h), own) / jnp.maximum(
            energy(w, h), jnp.finfo(jnp.float32).tiny
        )

    return jax.lax.map(of_layer, (jnp.moveaxis(stack, 1, 0), original, xtx))


def _item(path: str, layer: int) -> str:
    head, _, rest = path.partition("/")
    return f"{head}/{layer}/{rest}"


def _layer(weight: Any, at: int) -> Any:
    return jax.tree.map(lambda a: a[at], weight)
