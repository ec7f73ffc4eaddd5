"""Relative output error of every matrix: on the tokens a method was calibrated on, and on tokens it never saw."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language_model import TestBed, projections
from compressjax.calibration import Hessian, Stats, calibrate
from compressjax.models import Llama
from compressjax.numerics.linalg import quadratic
from compressjax.ops import dense
from compressjax.quantization import quantize_with_info


class Errors(NamedTuple):
    """``tr(EᵀHE) / tr(WᵀHW)`` of all matrices, ``[matrices of a layer, layers]``.

    Attributes:
      seen: with the Hessian of the calibration tokens.
      unseen: with that of other tokens.
    """

    seen: np.ndarray
    unseen: np.ndarray


def hessians(bed: TestBed, tokens: np.ndarray, batch: int = 2) -> Stats:
    """Hessians of every distinct input in one pass through the uncompressed model, undamped."""
    model = Llama(bed.cfg)

    def hidden(params, ids):
        return model.apply({"params": params}, ids, method="hidden")[0]

    batches = [jnp.asarray(tokens[at : at + batch]) for at in range(0, len(tokens), batch)]
    return calibrate(hidden, bed.params, batches, Hessian(), paths="blocks/**")


def pick_layers(stats: Stats, layers: list[int]) -> Stats:
    """Statistics of some layers only."""
    at = np.asarray(layers)
    return Stats({path: jax.tree.map(lambda a: a[at], record) for path, record in stats.records.items()}, stats.owner)


def errors(bed: TestBed, cfg: Any, seen: Stats, unseen: Stats) -> Errors:
    """Errors of all matrices of a model under one config, each compressed by itself on uncompressed inputs."""
    leaves, infos = quantize_with_info(bed.params, cfg, stats=seen)
    found, before = projections(leaves), projections(bed.params)
    inside = [np.asarray(infos[path].error / infos[path].energy) for path in found]
    outside = [np.asarray(_relative(before[path], found[path], unseen[path].xtx)) for path in found]
    return Errors(np.stack(inside), np.stack(outside))


@jax.jit
def _relative(w, leaf, h):
    """``[layers]``; one layer's dense weight at a time."""

    def one(args):
        w, leaf, h = args
        return quadratic(w - dense(leaf), h) / quadratic(w, h)

    return jax.lax.map(one, (w, leaf, h))
