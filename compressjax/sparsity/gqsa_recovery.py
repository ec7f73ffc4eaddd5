"""The two recovery stages of GQSA: each block to its dense output (BQPO), then all scales to the model's own loss.

Both take any tree with uniform or sparse leaves (``Affine``, ``GroupSparse``, ``NMSparse``), so that a baseline can be
given the same recovery. Stage one trains kept weights, scales and zeros through a rounding with straight-through
gradients; stage two freezes the codes and trains scales (Zeng et al., 2024, arXiv 2412.17560; the stages are those of
EfficientQAT, Chen et al., 2024, arXiv 2407.11062). Masters are float32; what is stored is rounded before it is used.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from compressjax.driver import BlockInputs, block_rule, wants_original
from compressjax.leaf.affine import Affine
from compressjax.leaf.group_sparse import GroupSparse, stored_groups
from compressjax.leaf.n_m import NMSparse
from compressjax.numerics.grids import grouped
from compressjax.select import replace, weights
from compressjax.sparsity.fake_groups import FakeGroups, FakeKind, fake_weight, from_fake, to_fake
from compressjax.sparsity.gqsa_config import BQPO, E2E, GQSA
from compressjax.sparsity.n_m import NM
from compressjax.training.block_tuning import BlockTuning, trained_arrays
from compressjax.training.reconstruction import chunk_errors, mean_error, reconstruct


def _trainable(params: Any, who: str) -> dict[str, Any]:
    """Leaves with scales to train, by path."""
    found = weights(params)
    kinds = (Affine, GroupSparse)
    leaves = {p: w for p, w in found.items() if isinstance(w.values if isinstance(w, NMSparse) else w, kinds)}
    if not leaves:
        raise ValueError(f"{who} trains Affine, GroupSparse and NMSparse leaves; there is none at {sorted(found)}")
    return leaves


class Recovered(NamedTuple):
    """A block after BQPO.

    Attributes:
      block: its params, in the structure of the given ones.
      before, after: mean squared error of the block's output over all chunks, stored leaves both times.
      losses: training loss before each step, float32 ``[steps]``.
    """

    block: Any
    before: jax.Array
    after: jax.Array
    losses: jax.Array


@functools.partial(jax.jit, static_argnames=("run", "cfg"))
def bqpo(
    block: Any, dense_block: Any, now: dict, original: dict | None, key: jax.Array | None, *, run: Any, cfg: BQPO
) -> Recovered:
    """Fits a compressed block to the output of its dense form: kept weights, scales and zeros, masks fixed.

    ``min mean |f(x; Ŵ) - f(x; W)|²`` with ``Ŵ = M s (clip(round(w/s) + round(z)) - round(z))``. Latent weights start at
    what the leaves decode to, so that nothing moves at rate 0. The block stays as it was should the stored result be
    worse on the chunks.

    Args:
      block: params with leaves; ``Affine``, ``GroupSparse`` and ``NMSparse`` train, and norms if asked.
      dense_block: params as they were.
      now, original, run: as ``driver.BlockInputs``.
      key: shuffles the chunks; None goes through them in order.
      cfg: the options.

    Returns:
      :class:`Recovered`.

    Raises:
      ValueError: when the block has no leaf to train, or the original inputs are wanted and missing.
    """
    leaves = _trainable(block, "BQPO")
    source = now if cfg.targets == "same" else original
    if source is None:
        raise ValueError("BQPO.targets='original' needs the uncompressed network's inputs, which were not gathered")
    targets = jax.lax.map(lambda chunk: run(dense_block, chunk), source)
    mask = now.get("mask")
    loop = BlockTuning(epochs=cfg.epochs, batch=cfg.batch, norms=cfg.norms)
    norms = {path: weights(block)[path] for path in trained_arrays(block, loop)}

    fakes, masks, kinds = {}, {}, {}
    for path, w in leaves.items():
        fakes[path], masks[path], kinds[path] = to_fake(w)
    trainable = {"fakes": fakes, "norms": {path: a.astype(jnp.float32) for path, a in norms.items()}}
    rates = {
        "fakes": {path: _rates(fake, masks[path], kinds[path], cfg) for path, fake in fakes.items()},
        "norms": {path: cfg.lr_norms * _rms(a) for path, a in trainable["norms"].items()},
    }

    def with_norms(block, trained):
        return replace(block, {path: trained["norms"][path].astype(a.dtype) for path, a in norms.items()})

    def apply(trained, masks, chunk):
        made = {path: fake_weight(fake, masks[path], kinds[path]) for path, fake in trained["fakes"].items()}
        return run(with_norms(replace(block, made), trained), chunk)

    fitted = reconstruct(apply, trainable, masks, now, targets, mask, loop, rates=rates, key=key)
    stored = {path: from_fake(w, fitted.trainable["fakes"][path]) for path, w in leaves.items()}
    new = with_norms(replace(block, stored), fitted.trainable)

    def judged(params):
        ids = jnp.arange(targets.shape[0])
        return mean_error(*chunk_errors(lambda p, _, chunk: run(p, chunk), params, None, now, targets, mask, ids))

    # Mapped over the pair and not called twice, so that the block is compiled once.
    before, after = jax.lax.map(judged, jax.tree.map(lambda *both: jnp.stack(both), block, new))
    better = after < before
    chosen = jax.tree.map(lambda fresh, old: jnp.where(better, fresh, old), new, block)
    return Recovered(chosen, before, jnp.where(better, after, before), fitted.losses)


def _rms(a, present=None):
    if present is None:
        return jnp.sqrt(jnp.mean(jnp.square(a)))
    return jnp.sqrt(jnp.sum(jnp.where(present, jnp.square(a), 0)) / jnp.maximum(jnp.sum(present, dtype=jnp.float32), 1))


def _rates(fake: FakeGroups, mask: jax.Array | None, kind: FakeKind, cfg: BQPO) -> FakeGroups:
    """Learning rates in the units of the arrays; what is not stored has no part in their sizes."""
    present = None if mask is None else jnp.any(grouped(mask, kind.group), axis=1)
    zeros = None if fake.zero is None else jnp.float32(cfg.lr_zeros)
    return FakeGroups(cfg.lr_weights * _rms(fake.w, mask), cfg.lr_scales * _rms(fake.scale, present), zeros)


@block_rule.register(BQPO)
def _(block, cfg, dense_block, inputs: BlockInputs, key):
    if cfg.epochs == 0:
        return block
    return bqpo(block, dense_block, inputs.now, inputs.original, key, run=inputs.run, cfg=cfg).block


@wants_original.register(BQPO)
def _(cfg):
    return cfg.epochs > 0 and cfg.targets == "original"


@block_rule.register(GQSA)
@block_rule.register(NM)
def _(block, cfg, dense_block, inputs: BlockInputs, key):
    return block_rule(block, cfg.bqpo, dense_block, inputs, key)


@wants_original.register(GQSA)
@wants_original.register(NM)
def _(cfg):
    return wants_original(cfg.bqpo)


def with_real_zeros(w: GroupSparse) -> GroupSparse:
    """The same weight with its zeros as numbers in the dtype of the scales, so that they can train."""
    f = _real_zeros
    for _ in range(w.index.ndim - (2 if w.row_ptr is None else 1)):
        f = jax.vmap(f)
    return f(w)


def _real_zeros(w):
    zero = stored_groups(w).zero.reshape(w.scale.shape).astype(w.scale.dtype)
    return dataclasses.replace(w, zero=zero, zero_kind="real")


def _masters(w: Any) -> dict[int, jax.Array]:
    """The floating arrays of a leaf, which are its scales and real zeros, in float32 by position."""
    arrays = enumerate(jax.tree.leaves(w))
    return {i: a.astype(jnp.float32) for i, a in arrays if jnp.issubdtype(a.dtype, jnp.floating)}


def _filled(w: Any, masters: dict[int, jax.Array], stored: bool) -> Any:
    """The leaf with its masters put back, in its own dtypes if ``stored``."""
    arrays, structure = jax.tree.flatten(w)
    for i, master in masters.items():
        arrays[i] = master.astype(arrays[i].dtype) if stored else master
    return jax.tree.unflatten(structure, arrays)


class Tuned(NamedTuple):
    """A model after E2E-OQP.

    Attributes:
      params: the tree; codes, masks and everything that is not a leaf are the given ones.
      losses: float32 ``[steps]``, each before its step.
    """

    params: Any
    losses: jax.Array


def e2e_oqp(model_loss: Callable[[Any, Any], jax.Array], params: Any, batches: Any, cfg: E2E) -> Tuned:
    """Trains the scales (and real zeros) of all uniform and sparse leaves on the model's own loss; codes are frozen.

    ``w = s (q - z)`` is linear in ``s``: ``dL/ds`` of a group is the sum over it of ``dL/dw (q - z)``, so no gradient
    of a weight outlives its layer.

    Args:
      model_loss: ``(params, batch) -> scalar``; pure.
      params: tree with ``Affine``, ``GroupSparse`` or ``NMSparse`` leaves, single or stacked.
      batches: pytree of arrays with one leading axis, one entry per step of an epoch.
      cfg: the options.

    Returns:
      :class:`Tuned`; the leaves' dtypes are those of ``params``.

    Raises:
      ValueError: when no leaf can train, or there are no batches.
    """
    leaves = _trainable(params, "e2e_oqp")
    counts = {a.shape[0] for a in jax.tree.leaves(batches)}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"batches must be arrays with one leading axis of at least one step, got {sorted(counts)}")
    if cfg.real_zeros:
        leaves = {
            path: with_real_zeros(w) if isinstance(w, GroupSparse) and w.zero_kind == "int" else w
            for path, w in leaves.items()
        }
    trained, losses = _tune_scales(leaves, params, batches, model_loss=model_loss, cfg=cfg)
    return Tuned(replace(params, trained), losses)


@functools.partial(jax.jit, static_argnames=("model_loss", "cfg"))
def _tune_scales(leaves, params, batches, *, model_loss, cfg):
    start = {path: _masters(w) for path, w in leaves.items()}

    def filled(masters, stored):
        return {path: _filled(w, masters[path], stored) for path, w in leaves.items()}

    def loss(masters, batch):
        return model_loss(replace(params, filled(masters, False)), batch)

    count = jax.tree.leaves(batches)[0].shape[0]
    steps = count * cfg.epochs
    adam = optax.scale_by_adam(0.9, 0.99)
    rates = jax.tree.map(lambda a: cfg.lr * _rms(a), start)

    def step(state, number):
        masters, moments = state
        batch = jax.tree.map(lambda a: a[number % count], batches)
        value, gradient = jax.value_and_grad(loss)(masters, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to an integer step count
            updates, moments = adam.update(gradient, moments, masters)
        now = (1 + jnp.cos(jnp.pi * number.astype(jnp.float32) / steps)) / 2
        masters = jax.tree.map(lambda a, u, rate: a - now * rate * u, masters, updates, rates)
        return (masters, moments), value.astype(jnp.float32)

    (masters, _), losses = jax.lax.scan(step, (start, adam.init(start)), jnp.arange(steps))
    return filled(masters, True), losses
