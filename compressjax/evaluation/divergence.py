"""How far a compressed model's predictions lie from the original's, on real text.

Kullback-Leibler divergence ``KL(p || q) = sum_v p_v (log p_v - log q_v)`` in nats per token, p the original's
distribution of the next token and q the compressed model's; and how often both name the same most likely token.
Both see changes that perplexity averages away (Dutta et al., 2024, "Accuracy is not all you need").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from compressjax.evaluation.batches import batches, checked_logits, checked_vocabulary, checked_windows
from compressjax.evaluation.logits import LogitsFn
from compressjax.evaluation.paired import ratio_standard_error


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DivergenceResult:
    """Distance between two models' predictions.

    Attributes:
      kl: mean of KL(original || compressed), nats per token.
      standard_error: of ``kl``, from the spread between windows; None with one window.
      agreement: share of positions where both models' most likely token is the same.
      tokens: number of positions compared.
      window_kl: float64 ``[N]``, mean of each window, NaN where a window has no real token.
      window_agreement: float64 ``[N]``, likewise.
    """

    kl: float
    standard_error: float | None
    agreement: float
    tokens: int
    window_kl: np.ndarray
    window_agreement: np.ndarray


def token_kl(original: jax.Array, compressed: jax.Array) -> jax.Array:
    """KL(original || compressed) at every position, in float32 whatever the logits' dtype.

    Args:
      original, compressed: logits ``[..., V]``.

    Returns:
      float32 ``[...]``, nats; infinite where the compressed model excludes what the original allows.
    """
    # Not log_softmax: XLA keeps its result in memory, while these differences melt into the summands.
    first, second = original.astype(jnp.float32), compressed.astype(jnp.float32)
    log_p = first - jax.nn.logsumexp(first, axis=-1, keepdims=True)
    log_q = second - jax.nn.logsumexp(second, axis=-1, keepdims=True)
    p = jnp.exp(log_p)
    # 0 log 0 is 0: a token the original gives no probability adds nothing, though its logit may be -inf.
    return jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)


def divergence(
    logits_fn: LogitsFn,
    original: Any,
    compressed: Any,
    tokens: ArrayLike,
    *,
    compressed_logits_fn: LogitsFn | None = None,
    batch_size: int = 1,
    mask: ArrayLike | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> DivergenceResult:
    """KL divergence and top-1 agreement at every position of every window.

    Args:
      logits_fn: the original model; compiled once per batch shape.
      original, compressed: parameters.
      tokens: integers ``[N, T]``.
      compressed_logits_fn: the compressed model; None when it is ``logits_fn`` too.
      batch_size: windows in one forward pass; the logits of both models for one batch are the peak of memory.
      mask: bool ``[N, T]``, True at real tokens; only their positions count. The models get the mask too.
      on_batch: called with (windows done, windows in all) after each batch.

    Raises:
      TypeError: tokens not integers or mask not bool.
      ValueError: wrong shapes, a token outside the vocabulary, vocabularies that differ, batch_size out of range, no
        real token, or a model returned NaN.
    """
    ids, real = checked_windows(tokens, mask)
    counted = np.ones(ids.shape, bool) if real is None else real
    if not counted.any():
        raise ValueError("no position is left to compare: the mask excludes all of them")
    other_fn = logits_fn if compressed_logits_fn is None else compressed_logits_fn
    kl_sums, agreed = np.zeros(len(ids)), np.zeros(len(ids))
    for batch in batches(ids, real, batch_size):
        kl, same, vocab_size = _compare(logits_fn, other_fn, original, compressed, batch.tokens, batch.mask)
        checked_vocabulary(ids, int(vocab_size))
        rows = batch.rows
        kept = counted[rows]
        kl_sums[rows] = np.where(kept, np.asarray(kl, np.float64)[: len(kept)], 0.0).sum(axis=1)
        agreed[rows] = (kept & np.asarray(same)[: len(kept)]).sum(axis=1)
        if np.isnan(kl_sums[rows]).any():
            raise ValueError(f"a model returned NaN in windows {rows.start} to {rows.stop - 1}")
        if on_batch is not None:
            on_batch(rows.stop, len(ids))
    counts = counted.sum(axis=1)
    total = int(counts.sum())
    return DivergenceResult(
        kl=float(kl_sums.sum() / total),
        standard_error=ratio_standard_error(kl_sums, counts),
        agreement=float(agreed.sum() / total),
        tokens=total,
        window_kl=np.divide(kl_sums, counts, out=np.full(len(ids), np.nan), where=counts > 0),
        window_agreement=np.divide(agreed, counts, out=np.full(len(ids), np.nan), where=counts > 0),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(
    logits_fn: LogitsFn, other_fn: LogitsFn, original: Any, compressed: Any, tokens: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """KL float32 ``[B, T]``, same most likely token bool ``[B, T]``, and the vocabulary the logits cover."""
    extra = () if mask is None else (mask,)
    p = checked_logits(logits_fn(original, tokens, *extra), tokens)
    q = checked_logits(other_fn(compressed, tokens, *extra), tokens)
    if p.shape != q.shape:
        raise ValueError(f"the models' vocabularies differ: {p.shape[-1]} and {q.shape[-1]}")
    return token_kl(p, q), jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1), jnp.int32(p.shape[-1])
