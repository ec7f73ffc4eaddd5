"""Tuning the floats of a compressed block until it does what the original block did, whatever compressed it.

Scales, real zeros, tables, outlier values and the like, and the gains of norms, are trained with Adam against the
output of the uncompressed block; codes and indices stay bit for bit. This is the block stage of decoupleQ (Guo et al.,
2024, arXiv 2404.12759, section 3.4), open to every method: ``quantize_blockwise(..., tuning=BlockTuning())``.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.driver import BlockInputs, block_rule, wants_original
from compressjax.leaf.registration import is_leaf
from compressjax.select import replace, weights
from compressjax.training.reconstruction import check_fit_fields, chunk_errors, mean_error, reconstruct, split_chunks
from compressjax.training.trainable import trainable_form


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockTuning:
    """Adam on the floats of a compressed block.

    Attributes:
      epochs: passes over the calibration chunks; ``steps`` overrides it.
      steps: optimiser steps, or None.
      lr: learning rate of the floats inside compressed weights.
      norm_lr: learning rate of norms and biases; None for ``lr``.
      lr_unit: "relative": rates are shares of each array's root mean square, alike for weights of any size;
        "absolute": as they are.
      schedule: "cosine" to zero, or "constant".
      b1, b2, eps: of Adam.
      weight_decay: added to the gradient as ``weight_decay * value``.
      batch: chunks per step, see ``sequential.in_chunks``.
      target: "same_inputs": the original block on the inputs that the compressed blocks before it put out, as decoupleQ
        has it; "original": on those of the uncompressed network, so that a block also makes up for earlier ones.
      norms: train gains and offsets of norms.
      biases: train biases beside kernels.
      held_out: share of the chunks to judge on; the state with the best loss there is kept.
      patience: stop after so many epochs without a better held-out loss; 0 for never.
    """

    epochs: int = 4
    steps: int | None = None
    lr: float = 5e-3
    norm_lr: float | None = None
    lr_unit: Literal["relative", "absolute"] = "relative"
    schedule: Literal["constant", "cosine"] = "cosine"
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    batch: int = 1
    target: Literal["same_inputs", "original"] = "same_inputs"
    norms: bool = True
    biases: bool = False
    held_out: float = 0.0
    patience: int = 0

    def __post_init__(self):
        check_fit_fields(self)
        for field in ("lr", "norm_lr"):
            rate = getattr(self, field)
            if rate is not None and not rate >= 0:
                raise ValueError(f"BlockTuning.{field} must be >= 0, got {rate}")
        for field, allowed in (("lr_unit", ("relative", "absolute")), ("target", ("same_inputs", "original"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"BlockTuning.{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if self.patience and not self.held_out:
            raise ValueError("BlockTuning.patience needs held_out > 0: there is nothing to judge on")


class TuningReport(NamedTuple):
    """What tuning did to a block.

    Attributes:
      before, after: mean squared error of the stored block over all chunks, float32 scalars.
      losses: training loss by step, ``[steps]``.
      held_out: held-out loss before and after each epoch, or empty.
      kept: whether the tuned block was better and is the one returned.
    """

    before: jax.Array
    after: jax.Array
    losses: jax.Array
    held_out: jax.Array
    kept: jax.Array


def trained_arrays(block: Any, cfg: BlockTuning) -> list[str]:
    """Paths of the plain arrays of a block that are trained: norms' (no kernel beside them), and biases if asked."""
    found = weights(block)
    kernels = {path.rpartition("/")[0] for path in found if path.rpartition("/")[2] == "kernel"}
    out = []
    for path, value in found.items():
        module, _, name = path.rpartition("/")
        if is_leaf(value) or not jnp.issubdtype(value.dtype, jnp.floating):
            continue
        if module in kernels:
            out += [path] if cfg.biases and name == "bias" else []
        elif cfg.norms and value.ndim == 1:
            out.append(path)
    return out


@functools.partial(jax.jit, static_argnames=("run", "cfg"))
def tune_block(
    block: Any, dense_block: Any, now: Any, original: Any, key: jax.Array | None, *, run: Any, cfg: BlockTuning
) -> tuple[Any, TuningReport]:
    """Tunes one block; compiled once for all blocks of one structure.

    Args:
      block: its params with compressed leaves.
      dense_block: its params before compression.
      now: ``{"x": [chunks, B, T, D], ("mask": bool [chunks, B, T])}``, its inputs.
      original: the same as the uncompressed network has them; read for ``target="original"`` only.
      key: shuffles the chunks, or None.
      run: ``(params, chunk of now) -> [B, T, D]``.
      cfg: the options.

    Returns:
      The block with new floats in its storage dtypes, or the old one where that is no worse on all chunks or on the
      held-out ones; and what happened.

    Raises:
      ValueError: when ``target="original"`` lacks its inputs, or the block has nothing to train.
    """
    if cfg.target == "original" and original is None:
        raise ValueError("BlockTuning.target='original' needs the uncompressed network's inputs, got None")
    found = weights(block)
    forms = {path: trainable_form(w) for path, w in found.items() if is_leaf(w)}
    arrays = {path: found[path] for path in trained_arrays(block, cfg)}
    if not forms and not arrays:
        raise ValueError(f"the block has neither compressed weights nor norms to train, only {sorted(found)}")
    targets = jax.lax.map(lambda chunk: run(dense_block, chunk), now if cfg.target == "same_inputs" else original)
    mask = now.get("mask")
    trainable = {
        "leaves": {path: form.floats for path, form in forms.items()},
        "arrays": {path: a.astype(jnp.float32) for path, a in arrays.items()},
    }
    frozen = {path: form.frozen for path, form in forms.items()}

    def apply(trainable, frozen, chunk):
        built = {path: forms[path].build(floats, frozen[path]) for path, floats in trainable["leaves"].items()}
        return run(replace(block, {**built, **_cast(trainable["arrays"], arrays)}), chunk)

    fitted = reconstruct(apply, trainable, frozen, now, targets, mask, cfg, rates=_rates(trainable, cfg), key=key)
    stored = {path: forms[path].store(floats) for path, floats in fitted.trainable["leaves"].items()}
    tuned = replace(block, {**stored, **_cast(fitted.trainable["arrays"], arrays)})

    # Judged as they are stored, by the leaves' own products: rounding to the storage dtype may undo what was gained.
    def judged(params):
        ids = jnp.arange(targets.shape[0])
        return chunk_errors(lambda params, _, chunk: run(params, chunk), params, None, now, targets, mask, ids)

    sums, entries = jax.lax.map(judged, jax.tree.map(lambda *both: jnp.stack(both), block, tuned))
    before, after = mean_error(sums[0], entries[0]), mean_error(sums[1], entries[1])
    kept = after <= before
    held = split_chunks(targets.shape[0], cfg.held_out)[1]
    if len(held):
        kept &= jnp.sum(sums[1, held]) <= jnp.sum(sums[0, held])
    chosen = jax.tree.map(lambda new, old: jnp.where(kept, new, old), tuned, block)
    return chosen, TuningReport(before, jnp.where(kept, after, before), fitted.losses, fitted.held_out, kept)


def _cast(arrays, like):
    return {path: a.astype(like[path].dtype) for path, a in arrays.items()}


def _rates(trainable, cfg):
    def rate(value, unit):
        if cfg.lr_unit == "absolute":
            return unit
        return unit * jnp.sqrt(jnp.mean(jnp.square(value)))

    norm_lr = cfg.lr if cfg.norm_lr is None else cfg.norm_lr
    units = {"leaves": cfg.lr, "arrays": norm_lr}
    return {name: jax.tree.map(lambda a, u=units[name]: rate(a, u), part) for name, part in trainable.items()}


@block_rule.register(BlockTuning)
def _(block, cfg, dense_block, inputs: BlockInputs, key):
    return tune_block(block, dense_block, inputs.now, inputs.original, key, run=inputs.run, cfg=cfg)[0]


@wants_original.register(BlockTuning)
def _(cfg):
    return cfg.target == "original"
