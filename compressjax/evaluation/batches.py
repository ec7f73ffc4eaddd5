"""Windows in equal batches, so that one compiled program serves all of them."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike


class Batch(NamedTuple):
    """Some windows of an evaluation.

    Attributes:
      tokens: int32 ``[B, T]``; the last batch is filled up with copies of its first window.
      mask: bool ``[B, T]``, the real tokens, or None when all are.
      rows: which windows these are; results past its length belong to the filling.
    """

    tokens: np.ndarray
    mask: np.ndarray | None
    rows: slice


def checked_windows(tokens: ArrayLike, mask: ArrayLike | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Windows and mask as arrays.

    Args:
      tokens: integers ``[N, T]``, T at least 2.
      mask: bool ``[N, T]``, True at real tokens; None when all are.

    Returns:
      int32 ``[N, T]``, and bool ``[N, T]`` or None.

    Raises:
      TypeError: tokens are not integers, or the mask is not bool.
      ValueError: wrong shapes, or a negative token.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        raise ValueError(f"tokens must have shape [windows >= 1, length >= 2], got {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"tokens must be integers, got {ids.dtype}")
    if ids.min() < 0:
        raise ValueError(f"tokens must not be negative, got {ids.min()}; exclude padding with mask")
    if mask is None:
        return ids.astype(np.int32), None
    real = np.asarray(mask)
    if real.dtype != np.bool_:
        raise TypeError(f"mask must be bool, got {real.dtype}")
    if real.shape != ids.shape:
        raise ValueError(f"mask must have the shape of tokens, {ids.shape}, got {real.shape}")
    return ids.astype(np.int32), real


def batches(tokens: np.ndarray, mask: np.ndarray | None, batch_size: int) -> Iterator[Batch]:
    """Batches of exactly ``batch_size`` windows, in order.

    Args:
      tokens, mask: as `checked_windows` returns them.
      batch_size: windows in a batch.

    Raises:
      ValueError: ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    size = min(batch_size, len(tokens))
    for start in range(0, len(tokens), size):
        rows = slice(start, min(start + size, len(tokens)))
        index = np.arange(start, start + size)
        index = np.where(index < rows.stop, index, start)
        yield Batch(tokens[index], None if mask is None else mask[index], rows)


def checked_vocabulary(tokens: np.ndarray, vocab_size: int) -> None:
    """Refuses tokens that logits over ``vocab_size`` entries cannot score: a gather would clamp them in silence.

    Raises:
      ValueError: a token at or above ``vocab_size``.
    """
    if tokens.max() >= vocab_size:
        raise ValueError(
            f"tokens hold id {tokens.max()}, but the model's logits cover {vocab_size} ids: another model's tokenizer?"
        )


def checked_logits(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The logits, if they are ``[B, T, V]`` for tokens ``[B, T]``.

    Raises:
      ValueError: any other shape.
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits_fn must return [B, T, V] for tokens of shape {tuple(tokens.shape)}, got {tuple(logits.shape)}"
        )
    return logits
