"""From a tree and rules to compressed leaves: the walk that every compress-time verb shares.

A method sees one ``[in, out]`` weight (or several that read the same input) and returns leaves. This file finds the
weights, hands each its statistics, runs stacked layers through the same compiled code one by one, and collects what
the methods say about their error.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from compressjax.calibration.records import Record
from compressjax.dispatch import verb
from compressjax.ops import logical_shape
from compressjax.select import replace, resolve, weights


class MatrixInfo(NamedTuple):
    """What a method reports about one matrix; scalars, stacked over layers.

    Attributes:
      error: squared output error over the calibration data, ``tr(Eᵀ H E)`` with the undamped Hessian; squared weight
        error when there are no statistics.
      rounding_error: the same for plain min-max rounding of the same bits and groups.
      energy: ``tr(Wᵀ H W)``, what ``error`` is relative to.
      damp: relative damping that was used.
      dead: number of inputs that never fired.
      fallback: whether the method gave up and rounded to nearest.
    """

    error: jax.Array
    rounding_error: jax.Array
    energy: jax.Array
    damp: jax.Array
    dead: jax.Array
    fallback: jax.Array


@verb(on="cfg")
def leaf_rule(w: Any, cfg: Any, stats: Record | None, key: jax.Array | None) -> tuple[Any, MatrixInfo | None]:
    """Compresses one weight; every method registers this for its config.

    Args:
      w: dense ``[in, out]`` weight or a compressed leaf.
      cfg: the method.
      stats: the record of the weight's input, or None.
      key: randomness, or None.

    Returns:
      The leaf, and what is known of its error.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="cfg")
def shared_rule(ws: tuple[Any, ...], cfg: Any, stats: Record | None, key: jax.Array | None):
    """Compresses weights that read the same input; registered by methods that can share work between them.

    Returns:
      A tuple of ``(leaf, info)``, one per weight.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="cfg")
def statistic_for(cfg: Any) -> Any:
    """The calibration statistic that a method reads, or None when it needs no data."""
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="cfg")
def wants_original(cfg: Any) -> bool:
    """Whether a method also reads the uncompressed network's inputs; methods that never do need not register."""
    raise NotImplementedError("run by the rule of its argument's type")


class BlockInputs(NamedTuple):
    """What a block reads, for rules that work on whole blocks.

    Attributes:
      run: ``(block_params, carry) -> hidden [B, T, D]`` of one chunk; hashable, so a static argument of jit.
      now: ``{"x": [chunks, B, T, D], ("mask": bool [chunks, B, T])}`` behind the compressed blocks before this one.
      original: the same behind the uncompressed ones, or None where no method asked for it.
    """

    run: Any
    now: dict[str, jax.Array]
    original: dict[str, jax.Array] | None


@verb(on="cfg")
def block_rule(block: Any, cfg: Any, dense_block: Any, inputs: BlockInputs, key: jax.Array | None) -> Any:
    """Improves a block whose weights have all been compressed; registered by methods that tune block by block.

    Args:
      block: the block's params with compressed leaves in place.
      cfg: the method.
      dense_block: the block's params as they were.
      inputs: what the block reads.
      key: randomness, or None.

    Returns:
      The block's params in the same structure.
    """
    raise NotImplementedError("run by the rule of its argument's type")


def compress_group(ws: tuple[Any, ...], cfg: Any, stats: Record | None, key: jax.Array | None = None):
    """Compresses weights that read the same input, together where the method can; pure, to be jitted by the caller."""
    if shared_rule.knows(cfg):
        return shared_rule(ws, cfg, stats, key)
    keys = [None] * len(ws) if key is None else list(jax.random.split(key, len(ws)))
    return tuple(leaf_rule(w, cfg, stats, k) for w, k in zip(ws, keys, strict=True))


@functools.partial(jax.jit, static_argnames=("cfg",))
def compress_group_jit(ws, stats, key, *, cfg):
    """Jitted :func:`compress_group`; compiled once per config and shapes."""
    return compress_group(ws, cfg, stats, key)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _compress_stack(w, stats, key, *, cfg):
    lead = logical_shape(w)[:-2]
    if not lead:
        return leaf_rule(w, cfg, stats, key)
    depth = 1
    for extent in lead:
        depth *= extent
    flat_w, flat_stats = jax.tree.map(lambda a: a.reshape(depth, *a.shape[len(lead) :]), (w, stats))
    keys = None if key is None else jax.random.split(key, depth)
    out = jax.lax.map(lambda args: leaf_rule(args[0], cfg, args[1], args[2]), (flat_w, flat_stats, keys))
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), out)


def compress(
    params: Any,
    cfg: Any,
    *,
    stats: Mapping[str, Record] | None = None,
    rules: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> tuple[Any, dict[str, MatrixInfo]]:
    """Compresses the selected weights of a tree, each by the method its rule names.

    Args:
      params: nested dicts of arrays or leaves; kernels are ``[in, out]`` or stacked ``[layers..., in, out]``.
      cfg: a method config for every kernel, or a mapping of path patterns to configs (None leaves weights alone).
      stats: records by weight path, from ``calibrate``.
      rules: patterns that take precedence over ``cfg``.
      key: randomness for methods that use it.

    Returns:
      The tree with leaves in place, and per compressed path the method's :class:`MatrixInfo`.

    Raises:
      ValueError: for a rule that matches nothing, a method without the statistics it needs, or weights or statistics
        that are not finite; the message names the path.
      NotImplementedError: for a config that no method has registered.
    """
    chosen = resolve(params, all_rules(cfg, rules))
    found = weights(params)
    leaves, infos = {}, {}
    for number, (path, method) in enumerate(chosen.items()):
        record = None if stats is None or path not in stats else stats[path]
        check_input(path, found[path], record, method)
        path_key = None if key is None else jax.random.fold_in(key, number)
        # One at a time, so that memory is that of one.
        leaves[path], info = jax.block_until_ready(_compress_stack(found[path], record, path_key, cfg=method))
        if info is not None:
            infos[path] = info
    return replace(params, leaves), infos


def all_rules(cfg: Any, rules: Mapping[str, Any] | None) -> dict[str, Any]:
    """One mapping of patterns to configs from the two ways of giving them."""
    base = dict(cfg) if isinstance(cfg, Mapping) else {"**": cfg}
    return {**(rules or {}), **{g: c for g, c in base.items() if g not in (rules or {})}}


def check_input(path: str, weight: Any, record: Record | None, method: Any) -> None:
    """Raises ValueError when a weight or its statistics cannot be compressed by ``method``."""
    needs = statistic_for(method)
    if needs is not None and record is None:
        raise ValueError(
            f"{type(method).__name__} needs {type(needs).__name__} statistics of {path}: pass stats=calibrate(...)"
        )
    if record is not None and record.xtx is not None:
        width = logical_shape(weight)[-2]
        if record.xtx.shape[-1] != width:
            raise ValueError(f"statistics of {path} are for {record.xtx.shape[-1]} inputs, the weight has {width}")
    for value, what in ((weight, "weight"), (record, "statistics")):
        for array in jax.tree.leaves(value):
            if isinstance(array, Tracer) or not jnp.issubdtype(array.dtype, jnp.floating):
                continue
            if not bool(jnp.all(jnp.isfinite(array))):
                raise ValueError(f"{what} of {path} has NaN or infinite entries")
