"""The two orders in which rotary pairs of a head are stored.

Half-split rotary (``rotate_half``) pairs component ``i`` with ``i + head_dim / 2``; interleaved rotary pairs ``2i``
with ``2i + 1``. GGUF files of the "llama" architecture keep query and key rows interleaved; Hugging Face checkpoints,
our models and the other GGUF architectures keep them half-split.
"""

import numpy as np


def _split(rows: np.ndarray, heads: int) -> tuple[int, int]:
    if heads < 1 or rows.shape[0] % (2 * heads):
        raise ValueError(f"rows of shape {rows.shape} do not split into heads={heads} with an even head size")
    return heads, rows.shape[0] // (2 * heads)


def to_half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Interleaved to half-split order.

    Args:
      rows: ``[heads * head_dim, ...]``: output rows of a query or key projection, or its bias.
      heads: number of heads in it.

    Raises:
      ValueError: the rows do not divide into that many heads of even size.
    """
    heads, pairs = _split(rows, heads)
    return rows.reshape(heads, pairs, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Half-split to interleaved order: the inverse of ``to_half_split``, same arguments."""
    heads, pairs = _split(rows, heads)
    return rows.reshape(heads, 2, pairs, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
