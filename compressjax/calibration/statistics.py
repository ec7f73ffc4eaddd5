"""Which statistic to gather from a linear layer's input: configs, and how each measures a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.dispatch import verb
from compressjax.numerics.linalg import gram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hessian:
    """``xtx = sum x xᵀ`` (and the token count): the Hessian, up to a factor, of the layer's squared output error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """``x_sum``, ``abs_sum`` and ``abs_max`` of every input channel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Rows of ``x`` themselves, evenly spaced over each batch.

    Attributes:
      per_batch: rows kept of each batch, >= 1.
    """

    per_batch: int = 64

    def __post_init__(self):
        if self.per_batch < 1:
            raise ValueError(f"Activations.per_batch must be >= 1, got {self.per_batch}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fisher:
    """``fisher = sum over examples of (d loss / d w)²``, the diagonal of the empirical Fisher information.

    Attributes:
      loss: ``(outputs, batch) -> f32 [examples]``, one loss per example (leading axis of the batch).
    """

    loss: Callable[[Any, Any], jax.Array]


@verb(on="cfg")
def measure(cfg: Any, x: jax.Array, mask: jax.Array | None = None) -> Record:
    """Record of one batch of inputs.

    Args:
      cfg: a statistic config that needs inputs only (all but :class:`Fisher`).
      x: ``[..., in]``; sums are accumulated in float32 at full precision whatever the dtype.
      mask: bool, one entry per row of ``x``; rows that are False contribute nothing. None keeps all.
    """
    raise NotImplementedError("run by the rule of its argument's type")


@verb(on="cfg")
def blank(cfg: Any, shape: tuple[int, int]) -> Record:
    """A zero record for a weight of shape ``(in, out)``, laid out as the statistic fills it."""
    raise NotImplementedError("run by the rule of its argument's type")


def _rows(x, mask):
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if mask is None:
        return x, jnp.float32(x.shape[0])
    keep = mask.reshape(-1)
    if keep.shape[0] != x.shape[0]:
        raise ValueError(f"mask has {keep.shape[0]} entries for inputs of {x.shape[0]} rows")
    keep = keep.astype(bool)
    return jnp.where(keep[:, None], x, jnp.float32(0)), jnp.sum(keep, dtype=jnp.float32)


@measure.register(Hessian)
def _(cfg, x, mask=None):
    rows, count = _rows(x, mask)
    return Record(count=count, xtx=gram(rows))


@blank.register(Hessian)
def _(cfg, shape):
    width = shape[0]
    return Record(count=jnp.zeros((), jnp.float32), xtx=jnp.zeros((width, width), jnp.float32))


@measure.register(Moments)
def _(cfg, x, mask=None):
    rows, count = _rows(x, mask)
    size = jnp.abs(rows)
    return Record(count=count, x_sum=rows.sum(0), abs_sum=size.sum(0), abs_max=size.max(0))


@blank.register(Moments)
def _(cfg, shape):
    zero = jnp.zeros((shape[0],), jnp.float32)
    return Record(count=jnp.zeros((), jnp.float32), x_sum=zero, abs_sum=zero, abs_max=zero)


@measure.register(Activations)
def _(cfg, x, mask=None):
    rows, count = _rows(x, mask)
    total = rows.shape[0]
    if mask is None:
        at = (jnp.arange(cfg.per_batch) * total) // cfg.per_batch
    else:
        # Kept rows first, in order, so that evenly spaced picks fall on kept rows only.
        kept = jnp.argsort(~mask.reshape(-1).astype(bool), stable=True)
        at = kept[(jnp.arange(cfg.per_batch) * jnp.maximum(count, 1).astype(jnp.int32)) // cfg.per_batch]
    return Record(count=count, samples=rows[at])


@blank.register(Activations)
def _(cfg, shape):
    return Record(count=jnp.zeros((), jnp.float32), samples=jnp.zeros((cfg.per_batch, shape[0]), jnp.float32))


@blank.register(Fisher)
def _(cfg, shape):
    return Record(count=jnp.zeros((), jnp.float32), fisher=jnp.zeros(shape, jnp.float32))
