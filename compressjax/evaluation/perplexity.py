"""Perplexity: how surprised a language model is by a text.

With windows of T tokens, the mean negative log-likelihood over all scored positions,
``nll = mean(-log p(x_t | x_<t))`` in nats per token, and ``perplexity = exp(nll)``.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from compressjax.evaluation.batches import batches, checked_logits, checked_vocabulary, checked_windows
from compressjax.evaluation.logits import LogitsFn
from compressjax.evaluation.paired import ratio_standard_error

_LARGEST_EXPONENT = math.log(sys.float_info.max)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PerplexityResult:
    """Negative log-likelihood of a text under a model.

    Attributes:
      nll: mean over scored tokens, nats per token.
      perplexity: ``exp(nll)``; infinite when too large for a float.
      standard_error: of ``nll``, from the spread between windows, nats per token; None with one window.
      tokens: number of scored tokens.
      bits_per_byte: None unless the number of bytes was given.
      window_nll: float64 ``[N]``, mean of each window, NaN where a window has no scored token.
      window_tokens: int64 ``[N]``, scored tokens of each window.
    """

    nll: float
    perplexity: float
    standard_error: float | None
    tokens: int
    bits_per_byte: float | None
    window_nll: np.ndarray
    window_tokens: np.ndarray


def token_nll(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Negative log-likelihood of every token but the first of each row, in float32 whatever the logits' dtype.

    Args:
      logits: ``[B, T, V]``, position t for token t + 1.
      tokens: int ``[B, T]``.

    Returns:
      float32 ``[B, T - 1]``, nats.
    """
    # The difference of two reductions of all logits, cut after them: neither a normalised nor a sliced copy of
    # [B, T, V] is ever made.
    following = jnp.roll(tokens, -1, axis=1)
    chosen = jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return (jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) - chosen)[:, :-1]


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total negative log-likelihood per byte of text, comparable across tokenizers: ``nats / (bytes ln 2)``.

    Args:
      nats: sum over all tokens of the text.
      num_bytes: UTF-8 bytes of the same text.

    Raises:
      ValueError: ``num_bytes`` below 1.

    Example:
      >>> round(bits_per_byte(math.log(256), 1), 9)
      8.0
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes must be at least 1, got {num_bytes}")
    return nats / (num_bytes * math.log(2))


def perplexity(
    logits_fn: LogitsFn,
    params: Any,
    tokens: ArrayLike,
    *,
    stride: int | None = None,
    batch_size: int = 1,
    mask: ArrayLike | None = None,
    num_bytes: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Perplexity over windows; within a window, positions 2 to T are scored.

    Args:
      logits_fn: the model; compiled once per batch shape.
      params: its parameters, compressed leaves included.
      tokens: integers ``[N, T]``.
      stride: with windows that overlap (``windows(ids, T, stride=stride)``), how many tokens each adds to the one
        before: after the first window only these are scored, the rest being context. None scores all.
      batch_size: windows in one forward pass; the logits of one batch are the peak of memory.
      mask: bool ``[N, T]``, True at real tokens. A token is scored when it and the token before it are real. The
        model gets the mask too.
      num_bytes: UTF-8 bytes of the scored tokens, for ``bits_per_byte``.
      on_batch: called with (windows done, windows in all) after each batch.

    Raises:
      TypeError: tokens not integers or mask not bool.
      ValueError: wrong shapes, a token outside the vocabulary, stride or batch_size out of range, no token left to
        score, or the model returned NaN.
    """
    ids, real = checked_windows(tokens, mask)
    n, length = ids.shape
    if stride is not None and not 1 <= stride <= length:
        raise ValueError(f"stride must be between 1 and the window length {length}, got {stride}")
    scored = np.ones((n, length - 1), bool)
    if stride is not None:
        scored[1:, : max(0, length - stride - 1)] = False
    if real is not None:
        scored &= real[:, 1:] & real[:, :-1]
    return _score(logits_fn, params, ids, real, scored, batch_size, num_bytes, on_batch)


def perplexity_strided(
    logits_fn: LogitsFn,
    params: Any,
    ids: ArrayLike,
    *,
    window: int,
    stride: int,
    batch_size: int = 1,
    num_bytes: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Perplexity of a whole text with a sliding window: every token is scored once, with at least
    ``window - stride`` tokens before it (save at the start of the text).

    The last window is moved back so that it ends with the text. With ``stride == window`` there is no overlap, and
    the first token of each window, which nothing precedes, is not scored.

    Args:
      ids: integers ``[n]``, the text's tokens.
      window: tokens in a window, ``2 <= window <= n``.
      stride: tokens between window starts, ``1 <= stride <= window``.
      logits_fn, params, batch_size, num_bytes, on_batch: as in `perplexity`.

    Raises:
      TypeError, ValueError: as `perplexity`; also a text shorter than one window.
    """
    flat = np.asarray(ids)
    if flat.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, got shape {flat.shape}")
    if window < 2:
        raise ValueError(f"window must be at least 2 tokens, got {window}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be between 1 and window={window}, got {stride}")
    n = len(flat)
    if n < window:
        raise ValueError(f"a text of {n} tokens is shorter than one window of {window}")
    starts = np.append(np.arange(0, n - window, stride), n - window)
    positions = starts[:, None] + np.arange(window)[None, :]
    seen = np.append(0, starts[:-1] + window)  # tokens before this one were scored by an earlier window
    scored = positions[:, 1:] >= seen[:, None]
    tokens, _ = checked_windows(flat[positions], None)
    return _score(logits_fn, params, tokens, None, scored, batch_size, num_bytes, on_batch)


@functools.partial(jax.jit, static_argnums=0)
def _window_nll(
    logits_fn: LogitsFn, params: Any, tokens: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """``[B, T - 1]`` of `token_nll`, and the vocabulary the logits cover."""
    logits = checked_logits(logits_fn(params, tokens) if mask is None else logits_fn(params, tokens, mask), tokens)
    return token_nll(logits, tokens), jnp.int32(logits.shape[-1])


def _score(
    logits_fn: LogitsFn,
    params: Any,
    ids: np.ndarray,
    real: np.ndarray | None,
    scored: np.ndarray,
    batch_size: int,
    num_bytes: int | None,
    on_batch: Callable[[int, int], None] | None,
) -> PerplexityResult:
    if not scored.any():
        raise ValueError("no token is left to score: the mask excludes all of them")
    sums = np.zeros(len(ids))
    for batch in batches(ids, real, batch_size):
        nll, vocab_size = _window_nll(logits_fn, params, batch.tokens, batch.mask)
        checked_vocabulary(ids, int(vocab_size))
        rows = batch.rows
        # Where, not a product: what the model says at excluded positions may be NaN.
        kept = np.where(scored[rows], np.asarray(nll, np.float64)[: rows.stop - rows.start], 0.0)
        sums[rows] = kept.sum(axis=1)
        if np.isnan(sums[rows]).any():
            raise ValueError(f"the model returned NaN in windows {rows.start} to {rows.stop - 1}")
        if on_batch is not None:
            on_batch(rows.stop, len(ids))
    counts = scored.sum(axis=1)
    nll, total = float(sums.sum() / counts.sum()), int(counts.sum())
    return PerplexityResult(
        nll=nll,
        perplexity=math.exp(nll) if nll < _LARGEST_EXPONENT else math.inf,
        standard_error=ratio_standard_error(sums, counts),
        tokens=total,
        bits_per_byte=None if num_bytes is None else bits_per_byte(float(sums.sum()), num_bytes),
        window_nll=np.divide(sums, counts, out=np.full(len(ids), np.nan), where=counts > 0),
        window_tokens=counts,
    )
