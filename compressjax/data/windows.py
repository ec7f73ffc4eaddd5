"""Token windows: how a text becomes the ``[N, T]`` array that calibration and evaluation read.

A text is tokenised whole, without a beginning-of-sequence token, and cut into N windows of T tokens.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


def windows(
    ids: ArrayLike,
    length: int,
    count: int | None = None,
    *,
    spread: Literal["start", "even"] = "start",
    stride: int | None = None,
    context: int | None = None,
    vocab_size: int | None = None,
) -> np.ndarray:
    """Cuts token ids into windows.

    ``spread="start"`` takes consecutive windows from the first token on, one every ``stride`` tokens.
    ``spread="even"`` spreads ``count`` windows from the first token to the last: with n ids, window i starts at
    ``i (n - length) // (count - 1)``, so windows do not overlap. Tokens after the last window are left out.

    Args:
      ids: integers ``[n]``, a text's tokens.
      length: tokens in a window, at least 2 (the first is never predicted).
      count: number of windows; None for as many as fit.
      spread: where windows lie.
      stride: tokens between window starts, ``1 <= stride <= length``; None for ``length``. Only with "start".
      context: the model's longest sequence; None for no check.
      vocab_size: the model's vocabulary; None for no check.

    Returns:
      int32 ``[count, length]``.

    Raises:
      TypeError: ids are not integers.
      ValueError: an argument out of range, fewer tokens than the windows need, ``length`` over ``context``, or an id
        outside the vocabulary.

    Example:
      >>> windows(range(10), 4).tolist()
      [[0, 1, 2, 3], [4, 5, 6, 7]]
      >>> windows(range(10), 4, 2, spread="even").tolist()
      [[0, 1, 2, 3], [6, 7, 8, 9]]
      >>> windows(range(10), 4, stride=3).tolist()
      [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    """
    tokens = _checked_ids(ids, vocab_size)
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    if context is not None and length > context:
        raise ValueError(f"windows of {length} tokens are longer than the context of {context}")
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1 window, got {count}")
    if spread not in ("start", "even"):
        raise ValueError(f"spread must be 'start' or 'even', got {spread!r}")
    if spread == "even" and stride is not None:
        raise ValueError(f"stride={stride} has no meaning with spread='even'")
    step = length if stride is None else stride
    if not 1 <= step <= length:
        raise ValueError(f"stride must be between 1 and length={length}, got {stride}")
    n = len(tokens)
    if n < length:
        raise ValueError(f"a text of {n} tokens is shorter than one window of {length}")
    fitting = (n - length) // step + 1
    wanted = fitting if count is None else count
    if wanted > fitting:
        need = (wanted - 1) * step + length
        raise ValueError(f"{wanted} windows of {length} tokens need {need} tokens, the text has {n}")
    if spread == "even":
        starts = np.arange(wanted) * (n - length) // max(wanted - 1, 1)
    else:
        starts = np.arange(wanted) * step
    return tokens[starts[:, None] + np.arange(length)[None, :]]


def baseline_windows(ids: ArrayLike, count: int = 8, length: int = 512) -> np.ndarray:
    """The first ``count`` windows without overlap, for quick perplexities (8 or 16 windows of 512).

    Args:
      ids: integers ``[n]``, the text's tokens.
      count, length: number of windows and tokens in each.

    Returns:
      int32 ``[count, length]``.

    Raises:
      TypeError, ValueError: as `windows`.
    """
    return windows(ids, length, count)


def calibration_windows(ids: ArrayLike, count: int = 32, length: int = 512) -> np.ndarray:
    """``count`` windows spread evenly over a text, so that calibration sees all its subjects.

    Args:
      ids: integers ``[n]``, the calibration text's tokens.
      count, length: number of windows and tokens in each.

    Returns:
      int32 ``[count, length]``.

    Raises:
      TypeError, ValueError: as `windows`.
    """
    return windows(ids, length, count, spread="even")


def wikitext2_windows(ids: ArrayLike, count: int = 30, length: int = 1024) -> np.ndarray:
    """The WikiText-2 evaluation protocol: the first 30,720 tokens of the test file as 30 windows of 1024.

    Args:
      ids: integers ``[n]``, the tokens of the whole test file as one string.
      count, length: number of windows and tokens in each.

    Returns:
      int32 ``[count, length]``.

    Raises:
      TypeError, ValueError: as `windows`.
    """
    return windows(ids, length, count)


def _checked_ids(ids: ArrayLike, vocab_size: int | None) -> np.ndarray:
    tokens = np.asarray(ids)
    if tokens.ndim != 1:
        raise ValueError(f"ids must be one-dimensional, got shape {tokens.shape}")
    if tokens.size == 0:
        raise ValueError("ids are empty: the text has no tokens")
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"ids must be integers, got {tokens.dtype}")
    low, high = int(tokens.min()), int(tokens.max())
    limit = np.iinfo(np.int32).max + 1 if vocab_size is None else vocab_size
    if low < 0 or high >= limit:
        raise ValueError(f"ids must lie in [0, {limit}), got {low if low < 0 else high}: another model's tokenizer?")
    return tokens.astype(np.int32)
