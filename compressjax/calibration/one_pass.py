"""Statistics of every layer from one forward pass, for any model whose products go through ``ops.matmul``."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Stats, merge_over_axis
from compressjax.calibration.statistics import Fisher, Hessian, blank
from compressjax.calibration.tap import Sightings, Tapped
from compressjax.ops import logical_shape
from compressjax.select import is_matrix, matches, replace, weights


def calibrate(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    batches: Iterable[Any],
    cfg: Any = None,
    *,
    paths: str | tuple[str, ...] = "**",
    progress: Callable[[int], None] | None = None,
) -> Stats:
    """Gathers a statistic of every selected weight's input over the batches.

    Args:
      apply_fn: ``(params, batch) -> outputs``; products with weights must go through ``ops.matmul`` (our models, or
        an adapter for flax modules). It is traced once per batch shape.
      params: tree of dicts.
      batches: batches of any kind that ``apply_fn`` takes. A batch that is a dict with the key "mask" (bool, one
        entry per token) has its masked tokens left out.
      cfg: :class:`Hessian` (default), :class:`Moments`, :class:`Activations` or :class:`Fisher`.
      paths: pattern, or patterns, of the kernels to look at.
      progress: called with the number of batches done after each.

    Returns:
      :class:`Stats`; kernels that read the same array share a record.

    Raises:
      ValueError: without batches or kernels, when a kernel is never multiplied, a mask does not fit, or a statistic
        comes out not finite (NaN in the weights or the data); the message names the path.
    """
    cfg = Hessian() if cfg is None else cfg
    patterns = (paths,) if isinstance(paths, str) else tuple(paths)
    total: Stats | None = None
    owner: dict[str, str] | None = None
    done = 0
    for done, batch in enumerate(batches, 1):
        if owner is None:
            owner = shared_inputs(apply_fn, params, batch, patterns)
            if isinstance(cfg, Fisher):  # gradients belong to each weight, not to the input that several read
                owner = {path: path for path in owner}
        part = _calibrate_jit(apply_fn, cfg, tuple(sorted(owner.items())), params, batch)
        total = part if total is None else total.merge(part)
        if progress is not None:
            progress(done)
    if total is None:
        raise ValueError("batches is empty: calibration needs at least one batch")
    check_finite(total)
    return total


def calibrate_batch(
    apply_fn: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    cfg: Any,
    owner: Mapping[str, str],
    *,
    axis_name: Any = None,
) -> Stats:
    """Statistics of one batch, as a pure function.

    Args:
      apply_fn, params, batch, cfg: as for :func:`calibrate`.
      owner: which weight's tap serves each path, from :func:`shared_inputs`.
      axis_name: mesh axis over which records are merged, when called inside ``shard_map``.
    """
    found = weights(params)
    tapped = sorted(set(owner.values()))
    records = {path: _blank(cfg, found[path]) for path in tapped}
    mask = batch.get("mask") if isinstance(batch, Mapping) else None

    def outputs(accumulators):
        taps = {
            path: Tapped(
                weight=jax.lax.stop_gradient(found[path]),
                record=accumulators[path],
                mask=_stack_mask(mask, logical_shape(found[path])[:-2]),
                cfg=cfg,
                path=path,
            )
            for path in tapped
        }
        return apply_fn(replace(params, taps), batch)

    def objective(accumulators):
        out = outputs(accumulators)
        if isinstance(cfg, Fisher):
            return jnp.sum(cfg.loss(out, batch))
        # Multiplied by zero: the cotangents of the accumulators do not depend on the objective, only on the path to it.
        return sum(jnp.sum(leaf.astype(jnp.float32)) * 0 for leaf in jax.tree.leaves(out) if _floating(leaf))

    gathered = jax.grad(objective)(records)
    if axis_name is not None:
        gathered = {path: merge_over_axis(r, axis_name) for path, r in gathered.items()}
    return Stats(gathered, dict(owner))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _calibrate_jit(apply_fn, cfg, owner, params, batch):
    return calibrate_batch(apply_fn, params, batch, cfg, dict(owner))


def shared_inputs(
    apply_fn: Callable[[Any, Any], Any], params: Any, batch: Any, patterns: tuple[str, ...] = ("**",)
) -> dict[str, str]:
    """Which kernels read the same array, found by tracing the model once without running it.

    Returns:
      path -> path of the first kernel that reads the same input.

    Raises:
      ValueError: when no kernel matches, or one that matches is never multiplied.
    """
    found = weights(params)
    chosen = [p for p, w in found.items() if is_matrix(p, w) and any(matches(g, p) for g in patterns)]
    if not chosen:
        raise ValueError(f"paths {patterns} match no kernel; weights are {sorted(found)}")
    seen = Sightings()
    taps = {p: Tapped(weight=found[p], record=None, mask=None, cfg=None, path=p, sightings=seen) for p in chosen}
    jax.eval_shape(lambda p, b: apply_fn(p, b), replace(params, taps), batch)
    silent = [p for p in chosen if p not in seen.inputs]
    if silent:
        raise ValueError(f"kernels {silent} are never multiplied through ops.matmul by apply_fn")
    first: dict[int, str] = {}
    return {p: first.setdefault(id(seen.inputs[p]), p) for p in chosen}


def check_finite(stats: Stats) -> None:
    """Raises ValueError naming the first record that holds NaN or infinity."""
    for path, record in stats.records.items():
        for value in jax.tree.leaves(record):
            if not bool(jnp.all(jnp.isfinite(value))):
                raise ValueError(f"calibration statistics of {path} are not finite: NaN or overflow in weights or data")


def _blank(cfg, weight):
    *lead, rows, cols = logical_shape(weight)
    one = blank(cfg, (rows, cols))
    return jax.tree.map(lambda a: jnp.zeros((*lead, *a.shape), a.dtype), one)


def _stack_mask(mask, lead):
    if mask is None:
        return None
    return jnp.broadcast_to(jnp.expand_dims(jnp.asarray(mask), tuple(range(len(lead)))), (*lead, *mask.shape))


def _floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)
