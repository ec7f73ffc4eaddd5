"""Fitting floats so that a function of them reproduces given outputs, chunk after chunk.

The loop behind block tuning and behind any method that trains some floats of a block against its original outputs.
It knows nothing of leaves: whoever calls it says how parameters become outputs.

    def apply(trainable, frozen, chunk):  # chunk: ``inputs`` without its leading axis
        return run(build_block(trainable, frozen), chunk)

    out = reconstruct(apply, trainable, frozen, inputs, targets, mask, cfg, key=key)

It is a pure function to be called inside a ``jit`` (of the caller, with ``apply`` built inside it or static, so that
blocks of one shape compile once). ``cfg`` is a ``BlockTuning``, or any config with the fields that
:func:`check_fit_fields` names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_fit_fields(cfg: Any) -> None:
    """Validates the fields that the loop reads from a method's config.

    Args:
      cfg: with these fields:
        ``epochs``, passes over the training chunks, >= 0, and ``steps``, optimiser steps instead, or None;
        ``batch``, chunks per step, whose gradients are added up one by one, so that memory is that of one chunk;
        ``schedule``, "constant", or "cosine" from the given rate to zero;
        ``b1``, ``b2``, ``eps`` of Adam, and ``weight_decay``, of which ``weight_decay * value`` joins the gradient;
        ``held_out``, share of the chunks to judge on and not to train on, 0 for none;
        ``patience``, epochs without a better held-out loss after which it stops, 0 for never.

    Raises:
      ValueError: naming the config, the field, what is allowed and what was given.
    """
    name = type(cfg).__name__
    for field, low in (("epochs", 0), ("batch", 1), ("patience", 0), ("weight_decay", 0)):
        if getattr(cfg, field) < low:
            raise ValueError(f"{name}.{field} must be >= {low}, got {getattr(cfg, field)}")
    if cfg.steps is not None and cfg.steps < 0:
        raise ValueError(f"{name}.steps must be None or >= 0, got {cfg.steps}")
    for field in ("b1", "b2"):
        if not 0 <= getattr(cfg, field) < 1:
            raise ValueError(f"{name}.{field} must be in [0, 1), got {getattr(cfg, field)}")
    if not cfg.eps > 0:
        raise ValueError(f"{name}.eps must be > 0, got {cfg.eps}")
    if not 0 <= cfg.held_out < 1:
        raise ValueError(f"{name}.held_out must be in [0, 1), got {cfg.held_out}")
    if cfg.schedule not in ("constant", "cosine"):
        raise ValueError(f"{name}.schedule must be 'constant' or 'cosine', got {cfg.schedule!r}")


class Reconstructed(NamedTuple):
    """Result of :func:`reconstruct`.

    Attributes:
      trainable: the fitted tree: of the best held-out loss where chunks are held out, else of the last step.
      losses: training loss at each step before its update, float32 ``[steps]``; NaN for steps that were not taken.
      held_out: loss over the held-out chunks before the first and after each epoch, float32 ``[epochs + 1]``; NaN
        after an early stop, empty without held-out chunks.
    """

    trainable: Any
    losses: jax.Array
    held_out: jax.Array


def split_chunks(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the held-out chunks, the latter evenly spaced; one chunk is never held out."""
    out = min(max(1, round(share * count)), count - 1) if share > 0 else 0
    held = ((np.arange(out) * 2 + 1) * count) // max(2 * out, 1)
    return np.setdiff1d(np.arange(count), held), held


def chunk_errors(apply: Callable, trainable: Any, frozen: Any, inputs: Any, targets: Any, mask: Any, ids: Any):
    """Squared errors over unmasked tokens, chunk by chunk of ``ids``: sums and numbers of entries, ``[ids]`` each."""
    return jax.lax.map(lambda i: _chunk_error(apply, trainable, frozen, inputs, targets, mask, i), ids)


def mean_error(sums: jax.Array, entries: jax.Array) -> jax.Array:
    """Mean squared error from what :func:`chunk_errors` counted."""
    return jnp.sum(sums) / jnp.maximum(jnp.sum(entries), 1)


def _chunk_error(apply, trainable, frozen, inputs, targets, mask, i):
    """Sum of squared errors over one chunk, and how many entries it has."""
    chunk, target = jax.tree.map(lambda a: a[i], (inputs, targets))
    miss = jnp.square(apply(trainable, frozen, chunk).astype(jnp.float32) - target.astype(jnp.float32))
    if mask is None:
        return jnp.sum(miss), jnp.float32(miss.size)
    keep = mask[i]
    total = jnp.sum(jnp.where(keep[..., None], miss, 0))
    return total, jnp.sum(keep, dtype=jnp.float32) * miss.shape[-1]


def reconstruct(
    apply: Callable[[Any, Any, Any], jax.Array],
    trainable: Any,
    frozen: Any,
    inputs: Any,
    targets: jax.Array,
    mask: jax.Array | None,
    cfg: Any,
    *,
    rates: Any = 1e-3,
    key: jax.Array | None = None,
) -> Reconstructed:
    """Trains ``trainable`` with Adam so that ``apply`` reproduces the targets.

    ``min mean over unmasked tokens of |apply(trainable, frozen, x) - target|²``.

    Args:
      apply: ``(trainable, frozen, chunk) -> [B, T, D]``; ``chunk`` is one entry of ``inputs``.
      trainable: pytree of float32 arrays.
      frozen: pytree of what ``apply`` also needs; never changed.
      inputs: pytree of arrays ``[chunks, ...]``.
      targets: ``[chunks, B, T, D]``.
      mask: bool ``[chunks, B, T]`` of the tokens that count, or None.
      cfg: see :func:`check_fit_fields`.
      rates: learning rate, a number or a tree prefix of ``trainable`` with one per part.
      key: shuffles the chunks anew in every epoch; None keeps their order.

    Returns:
      :class:`Reconstructed`.

    Raises:
      ValueError: without chunks, for trainables that are not float32, or shapes that do not fit.
    """
    _check(trainable, inputs, targets, mask)
    count = targets.shape[0]
    train, held = split_chunks(count, cfg.held_out)
    per_epoch = -(-len(train) // cfg.batch)
    steps = cfg.epochs * per_epoch if cfg.steps is None else cfg.steps
    epochs = -(-steps // per_epoch)
    if not steps:
        nothing = jnp.zeros((0,), jnp.float32)
        return Reconstructed(trainable, nothing, nothing)
    adam = optax.chain(
        optax.add_decayed_weights(cfg.weight_decay) if cfg.weight_decay else optax.identity(),
        optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps),
    )
    rates = jax.tree.map(lambda rate, part: jax.tree.map(lambda _: rate, part), rates, trainable)
    order = _visits(train, steps, cfg.batch, key)

    def batch_loss(params, ids):
        def one(i):
            return jax.value_and_grad(lambda p: _chunk_error(apply, p, frozen, inputs, targets, mask, i), has_aux=True)(
                params
            )

        def add(total, i):
            return jax.tree.map(jnp.add, total, one(i)), None

        first = one(ids[0])
        ((total, entries), gradient), _ = jax.lax.scan(add, first, ids[1:]) if cfg.batch > 1 else (first, None)
        entries = jnp.maximum(entries, 1)
        return total / entries, jax.tree.map(lambda g: g / entries, gradient)

    def one_step(i, state):
        params, moments, losses = state
        loss, gradient = batch_loss(params, order[i])
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to an integer step count
            updates, moments = adam.update(gradient, moments, params)
        now = jnp.float32(1)
        if cfg.schedule == "cosine":
            now = (1 + jnp.cos(jnp.pi * i.astype(jnp.float32) / steps)) / 2
        params = jax.tree.map(lambda p, u, rate: p - now * rate * u, params, updates, rates)
        return params, moments, losses.at[i].set(loss)

    def judged(params):
        return mean_error(*chunk_errors(apply, params, frozen, inputs, targets, mask, jnp.asarray(held)))

    def one_epoch(state):
        epoch, inner, best, judgements, since = state
        low = epoch * per_epoch
        inner = jax.lax.fori_loop(low, jnp.minimum(low + per_epoch, steps), one_step, inner)
        if not len(held):
            return epoch + 1, inner, inner[0], judgements, since
        loss = judged(inner[0])
        better = loss < jnp.nanmin(judgements)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), inner[0], best)
        return epoch + 1, inner, best, judgements.at[epoch + 1].set(loss), jnp.where(better, 0, since + 1)

    def goes_on(state):
        return (state[0] < epochs) & ((state[4] < cfg.patience) if cfg.patience else True)

    inner = trainable, adam.init(trainable), jnp.full((steps,), jnp.nan, jnp.float32)
    judgements = jnp.full((epochs + 1 if len(held) else 0,), jnp.nan, jnp.float32)
    if len(held):
        judgements = judgements.at[0].set(judged(trainable))
    start = jnp.int32(0), inner, trainable, judgements, jnp.int32(0)
    _, (_, _, losses), best, judgements, _ = jax.lax.while_loop(goes_on, one_epoch, start)
    return Reconstructed(best, losses, judgements)


def _visits(train, steps, batch, key):
    """Which chunks each step reads, int32 ``[steps, batch]``: one permutation after the other, none left out."""
    rounds = -(-steps * batch // len(train))
    ids = jnp.tile(jnp.asarray(train, jnp.int32), (rounds, 1))
    if key is not None:
        ids = jax.random.permutation(key, ids, axis=1, independent=True)
    return ids.reshape(-1)[: steps * batch].reshape(steps, batch)


def _check(trainable, inputs, targets, mask):
    wrong = {str(a.dtype) for a in jax.tree.leaves(trainable) if a.dtype != jnp.float32}
    if wrong or not jax.tree.leaves(trainable):
        raise ValueError(f"trainable must hold float32 arrays, got {sorted(wrong) or 'none at all'}")
    if targets.ndim < 2 or 0 in targets.shape:
        raise ValueError(f"targets must be [chunks >= 1, ..., D], got {targets.shape}")
    leads = {a.shape[0] for a in jax.tree.leaves(inputs)}
    if leads != {targets.shape[0]}:
        raise ValueError(f"inputs must have {targets.shape[0]} chunks as targets have, got {sorted(leads)}")
    if mask is not None and mask.shape != targets.shape[:-1]:
        raise ValueError(f"mask must be {targets.shape[:-1]} for targets {targets.shape}, got {mask.shape}")
