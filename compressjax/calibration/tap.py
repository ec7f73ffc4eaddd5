"""Weights that report what they read: statistics leave a model as cotangents.

A tapped weight multiplies as before and then passes its output through an identity whose backward rule gives a
zero-valued accumulator the statistic as its cotangent. ``jax.grad`` with respect to the accumulators therefore returns
every layer's statistic, with no hooks and no state, under ``jit``, ``scan``, ``vmap`` and ``shard_map``. The statistic
is computed in the forward rule, so only it, never the activations, is kept for the backward pass; what else the
backward pass would do feeds nothing and is removed by the compiler.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Fisher, measure
from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul


class Sightings:
    """Which input each weight read during a trace; compared by identity, so that it can be leaf metadata."""

    def __init__(self):
        self.inputs: dict[str, Any] = {}

    def note(self, path: str, x: Any):
        """Remembers ``x`` as what the weight at ``path`` read."""
        self.inputs[path] = x


@leaf(static=("cfg", "path", "sightings"))
class Tapped:
    """A weight with an accumulator; exists only while statistics are gathered.

    Attributes:
      weight: the dense or compressed weight.
      record: zero-valued accumulator, or None where another weight's tap already sees the input.
      mask: which tokens count, ``[*lead, tokens]``, or None.
      cfg: the statistic.
      path: the weight's path, for messages.
      sightings: notebook for finding shared inputs, or None.
    """

    weight: Any
    record: Record | None
    mask: jax.Array | None
    cfg: Any
    path: str
    sightings: Sightings | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _report(cfg, y, x, record, mask):
    return y


def _report_fwd(cfg, y, x, record, mask):
    if isinstance(cfg, Fisher):
        return y, (x, mask)
    return y, measure(cfg, x, mask)


def _report_bwd(cfg, kept, g):
    if not isinstance(cfg, Fisher):
        return g, None, kept, None
    x, mask = kept
    x, g32 = x.astype(jnp.float32), g.astype(jnp.float32)
    examples = x.shape[0]
    x = x.reshape(examples, -1, x.shape[-1])
    grads = jnp.einsum("eti,eto->eio", x, g32.reshape(examples, -1, g.shape[-1]), precision="highest")
    tokens = jnp.float32(x.shape[0] * x.shape[1]) if mask is None else jnp.sum(mask.astype(bool), dtype=jnp.float32)
    return g, None, Record(count=tokens, fisher=jnp.sum(grads**2, axis=0)), None


_report.defvjp(_report_fwd, _report_bwd)


@matmul.register(Tapped)
def _matmul(x, w: Tapped):
    if w.sightings is not None:
        w.sightings.note(w.path, x)
    y = matmul(x, w.weight)
    if w.record is None:
        return y
    try:
        return _report(w.cfg, y, x, w.record, w.mask)
    except ValueError as error:
        raise ValueError(f"calibration of {w.path}: {error}") from error


@logical_shape.register(Tapped)
def _shape(w: Tapped):
    return logical_shape(w.weight)


@dense.register(Tapped)
def _dense(w: Tapped):
    raise TypeError(f"{w.path} is being calibrated: its products must go through compressjax.ops.matmul")
