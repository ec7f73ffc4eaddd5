"""Cores of matrix product operators in few bits: as they are made, or once they have been healed."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.driver import leaf_rule, statistic_for
from compressjax.leaf.tensor_train import TensorTrain
from compressjax.leaf.transposed import Transposed
from compressjax.ops import dense
from compressjax.select import matches, replace, weights


def check_core_method(cfg: Any, what: str) -> None:
    """Raises TypeError unless ``cfg`` is a method that needs no statistics."""
    if not leaf_rule.knows(cfg) or statistic_for(cfg) is not None:
        raise TypeError(f"{what} must be a method that needs no statistics, such as RTN, got {cfg!r}")


def compressed_core(core: jax.Array, method: Any) -> Any:
    """One core ``[a i, o b]`` compressed, groups along its longer side.

    The first core of a train has a factor's few rows and thousands of columns: groups along the rows would be short,
    and filling words with codes would add a third of padding.
    """
    if core.shape[0] >= core.shape[1]:
        return leaf_rule(core, method, None, None)[0]
    return Transposed(inner=leaf_rule(core.T, method, None, None)[0])


def quantize_cores(params: Any, cfg: Any) -> Any:
    """The cores of every matrix product operator in a tree, compressed by a method, as after healing.

    Args:
      params: nested dicts of arrays and leaves.
      cfg: a method that needs no statistics, such as ``RTN(bits=8, group=64)``, or a mapping of path patterns to such
        methods; None leaves cores alone.

    Raises:
      TypeError: a method that needs statistics.
      ValueError: no weight is a matrix product operator, or a pattern names none.
    """
    rules = dict(cfg) if isinstance(cfg, Mapping) else {"**": cfg}
    for method in rules.values():
        if method is not None:
            check_core_method(method, "quantize_cores' cfg")
    trains = {p: w for p, w in weights(params).items() if any(map(_is_train, _nodes(w)))}
    idle = [g for g in rules if not any(matches(g, path) for path in trains)]
    if not trains or idle:
        raise ValueError(f"patterns {idle or list(rules)} name no matrix product operator; there are {sorted(trains)}")
    new = {}
    for path, w in trains.items():
        method = next((rules[g] for g in rules if matches(g, path)), None)
        if method is not None:
            new[path] = jax.tree.map(
                lambda node, m=method: _with_cores(node, m) if _is_train(node) else node, w, is_leaf=_is_train
            )
    return replace(params, new)


def _is_train(value):
    return isinstance(value, TensorTrain)


def _nodes(value):
    return jax.tree.leaves(value, is_leaf=_is_train)


def _with_cores(train, method):
    return dataclasses.replace(train, cores=tuple(_compressed(dense(core), method) for core in train.cores))


@functools.partial(jax.jit, static_argnums=1)
def _compressed(core, method):
    core = core.astype(jnp.float32)
    lead = core.shape[:-2]
    if not lead:
        return compressed_core(core, method)
    flat = jax.lax.map(lambda c: compressed_core(c, method), core.reshape(-1, *core.shape[-2:]))
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), flat)
