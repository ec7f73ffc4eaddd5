"""Several statistics of one input at once, for methods that read more than one."""

import dataclasses

import jax.numpy as jnp

from compressjax.calibration.records import Record
from compressjax.calibration.statistics import Activations, Hessian, Moments, blank, measure


@dataclasses.dataclass(frozen=True, kw_only=True)
class HessianAndMoments:
    """``xtx`` of all tokens, and ``x_sum``, ``abs_sum`` and ``abs_max`` of every channel.

    The first token of a window is an attention sink whose few channels can be a thousand times larger than any other
    token's. It counts in ``xtx`` and ``count``, but with ``skip_first`` it does not set ``abs_max``, nor is it sampled.

    Attributes:
      samples: rows of ``x`` kept of each batch, as ``Activations`` keeps them; 0 for none.
      skip_first: leave the first kept position of each row of tokens out of ``abs_max`` and ``samples``, where the
        input has a token axis of more than one position.
    """

    samples: int = 0
    skip_first: bool = True

    def __post_init__(self):
        if self.samples < 0:
            raise ValueError(f"HessianAndMoments.samples must be >= 0, got {self.samples}")


@measure.register(HessianAndMoments)
def _(cfg, x, mask=None):
    later = mask
    if cfg.skip_first and x.ndim >= 3 and x.shape[-2] > 1:
        kept = jnp.ones(x.shape[:-1], bool) if mask is None else mask.reshape(x.shape[:-1]).astype(bool)
        later = kept & (jnp.cumsum(kept.astype(jnp.int32), axis=-1) > 1)
    found, moments = measure(Hessian(), x, mask), measure(Moments(), x, mask)
    top = measure(Moments(), x, later).abs_max
    samples = measure(Activations(per_batch=cfg.samples), x, later).samples if cfg.samples else None
    return Record(
        count=found.count,
        xtx=found.xtx,
        x_sum=moments.x_sum,
        abs_sum=moments.abs_sum,
        abs_max=top,
        samples=samples,
    )


@blank.register(HessianAndMoments)
def _(cfg, shape):
    moments = blank(Moments(), shape)
    samples = jnp.zeros((cfg.samples, shape[0]), jnp.float32) if cfg.samples else None
    return dataclasses.replace(moments, xtx=blank(Hessian(), shape).xtx, samples=samples)
