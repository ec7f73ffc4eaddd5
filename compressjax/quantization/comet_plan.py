"""Which channels share a block, and which blocks run at 8 bits: the calibration of COMET's FMPQ.

Large activations sit in the same few channels for every token. Sorted by size, those channels fill the first blocks;
only these then need 8 bits, and the other blocks' scales are no longer set by an outlier. What a block loses at ``b``
bits is predicted as ``sum_j |w_j|² D_b(j)``, with ``D_b(j)`` the mean squared rounding error of channel ``j`` over
sampled tokens and ``w_j`` the weights that read it (Zhao et al., 2024, arXiv 2410.12168; thresholds are our own).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from compressjax.calibration.records import Record
from compressjax.numerics.integer_blocks import dequantize_blocks, largest_code, quantize_blocks, split_blocks


class BlockPlan(NamedTuple):
    """The order of an input's channels and how many leading blocks are wide; scalars are arrays.

    Attributes:
      perm: int32 ``[in]``, the channel at each place.
      n_hi: int32, blocks at the wide precision: blocks ``0 .. n_hi-1``.
      wanted: int32, blocks the rule asked for before the cap; more than ``n_hi`` when the cap cut some.
      outliers: int32, channels above the threshold.
    """

    perm: jax.Array
    n_hi: jax.Array
    wanted: jax.Array
    outliers: jax.Array


def block_width(width: int, cfg: Any) -> int:
    """Channels per block for ``width`` inputs: ``cfg.block``, or half of it where only that divides.

    Raises:
      ValueError: when there are fewer inputs than a block has channels.
    """
    if width < cfg.block:
        raise ValueError(f"COMET.block={cfg.block} is wider than the {width} inputs of a weight")
    half = cfg.block // 2
    return half if width % cfg.block and width % half == 0 and half >= 32 else cfg.block


def most_wide_blocks(width: int, cfg: Any) -> int:
    """Largest number of wide blocks that ``cfg.max_hi_fraction`` allows."""
    return int(cfg.max_hi_fraction * -(-width // block_width(width, cfg)))


def channel_error(samples: jax.Array, perm: jax.Array, block: int, bits: int, clip: float = 1.0) -> jax.Array:
    """Mean squared rounding error of every channel at one width, in the order of ``perm``, padding included.

    Args:
      samples: float32 ``[n, in]``.
      perm: int32 ``[in]``.
      block: channels per block.
      bits: width of the codes.
      clip: as in ``numerics.integer_blocks``.

    Returns:
      float32 ``[blocks, block]``.
    """
    x = split_blocks(samples.astype(jnp.float32)[:, perm], block)
    limit = jnp.full((x.shape[1],), largest_code(bits), jnp.float32)
    return jnp.mean((x - dequantize_blocks(quantize_blocks(x, limit, bits=bits, clip=clip))) ** 2, axis=0)


def predicted_errors(samples: jax.Array, perm: jax.Array, energy: jax.Array, cfg: Any) -> tuple[jax.Array, jax.Array]:
    """Predicted squared output error per token of every block, at the narrow and at the wide width.

    Args:
      samples: float32 ``[n, in]``.
      perm: int32 ``[in]``.
      energy: ``|w_j|²`` over all outputs that read channel ``j``, float32 ``[in]``.
      cfg: the method.

    Returns:
      Two float32 ``[blocks]``.
    """
    block = block_width(samples.shape[1], cfg)
    weight = split_blocks(energy[perm], block)
    lo, hi = (channel_error(samples, perm, block, bits, cfg.act_clip) for bits in (cfg.lo_bits, cfg.hi_bits))
    return jnp.sum(weight * lo, axis=-1), jnp.sum(weight * hi, axis=-1)


def plan_error(plan: BlockPlan, samples: jax.Array, energy: jax.Array, cfg: Any) -> jax.Array:
    """Predicted squared output error per token of a plan; what rule="error" makes small."""
    lo, hi = predicted_errors(samples, plan.perm, energy, cfg)
    return jnp.sum(jnp.where(jnp.arange(lo.shape[0]) < plan.n_hi, hi, lo))


def fmpq_plan(stats: Record, energy: jax.Array, cfg: Any) -> BlockPlan:
    """Orders the channels and counts the wide blocks.

    rule="outlier": channels with ``abs_max > tau median(abs_max)`` fill blocks 0, 1, ...; as many blocks are wide as
    they fill. rule="error": among the sorted blocks, those with the largest predicted gain come first, as many as the
    cap allows and the prediction gains from. With ``permute=False`` channels stay in their blocks and only whole
    blocks move, none of them when no block may be wide.

    Args:
      stats: ``abs_max`` of the input, and ``samples`` for rule="error".
      energy: ``|w_j|²`` per channel, float32 ``[in]``; read by rule="error" only.
      cfg: the method.

    Raises:
      ValueError: without the statistics, or for ``abs_max`` that is not finite or all zero where it is known.
    """
    amax = stats.abs_max
    if amax is None or (cfg.rule == "error" and stats.samples is None):
        missing = "abs_max" if amax is None else "samples"
        raise ValueError(f"COMET(rule={cfg.rule!r}) needs record.{missing} of the input")
    if not isinstance(amax, Tracer) and not (bool(jnp.all(jnp.isfinite(amax))) and bool(jnp.any(amax > 0))):
        raise ValueError("COMET needs a finite abs_max that is not zero everywhere")
    width = amax.shape[0]
    block = block_width(width, cfg)
    outlier = amax > cfg.tau * jnp.median(amax)
    count = jnp.sum(outlier, dtype=jnp.int32)
    start = jnp.argsort(-amax, stable=True) if cfg.permute else jnp.arange(width)
    perm = start.astype(jnp.int32)
    most = most_wide_blocks(width, cfg)
    if not cfg.permute and not most:
        return BlockPlan(perm=perm, n_hi=jnp.int32(0), wanted=jnp.int32(0), outliers=count)
    if cfg.rule == "error":
        assert stats.samples is not None
        lo, hi = predicted_errors(stats.samples, perm, energy, cfg)
        gain = lo - hi
        wanted = jnp.sum(gain > 0, dtype=jnp.int32)
        perm = _blocks_first(perm, gain, block)
    elif cfg.permute:
        wanted = -(-count // block)
    else:
        holds = split_blocks(outlier, block)
        wanted = jnp.sum(jnp.any(holds, axis=-1), dtype=jnp.int32)
        perm = _blocks_first(perm, jnp.max(split_blocks(amax, block), axis=-1), block)
    return BlockPlan(perm=perm, n_hi=jnp.minimum(wanted, most), wanted=wanted, outliers=count)


def _blocks_first(perm, score, block):
    """``perm`` with whole blocks in falling order of ``score``; a short last block stays last."""
    width = perm.shape[0]
    whole = width // block
    order = jnp.argsort(-score[:whole], stable=True)
    return jnp.concatenate([perm[: whole * block].reshape(whole, block)[order].reshape(-1), perm[whole * block :]])
