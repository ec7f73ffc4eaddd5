"""Order of 4-bit weights and of scales in the Marlin kernel's layout (Frantar et al., 2024), and back.

Marlin lays out 16 x 64 tiles (inputs x outputs) so that each thread of a warp loads the fragments of its fp16
tensor-core instructions with one wide read. Thread t of warp w holds rows ``2 (t % 4) + {0, 1, 8, 9}`` of columns
``16 w + t // 4`` and 8 further on: eight codes, one 32-bit word, whose nibbles come in the order 0 2 4 6 1 3 5 7 so
that one mask yields a pair of halves. The word of thread t and warp w is number ``4 t + w`` of its tile.
"""

import numpy as np

_TILE = (16, 64)
_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


def to_marlin(codes: np.ndarray) -> np.ndarray:
    """Packs 4-bit codes in Marlin's order.

    Args:
      codes: uint8 ``[in, out]`` in 0..15, ``in`` a multiple of 16 and ``out`` of 64.

    Returns:
      int32 ``[in / 16, out * 2]``.

    Raises:
      ValueError: sides that are not multiples of 16 and 64.
    """
    rows, cols = codes.shape
    _check_sides(rows, cols)
    tiles = codes.reshape(rows // 16, 16, cols // 64, 64).transpose(0, 2, 1, 3).reshape(-1, 16 * 64)
    nibbles = np.clip(tiles[:, _order()], 0, 15).astype(np.uint32).reshape(len(tiles), -1, 8)
    words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return words.reshape(rows // 16, cols * 2).view(np.int32)


def from_marlin(words: np.ndarray) -> np.ndarray:
    """Inverse of :func:`to_marlin`: uint8 ``[in, out]``.

    Raises:
      ValueError: a width that no number of tiles has.
    """
    rows, cols = words.shape[0] * 16, words.shape[1] // 2
    _check_sides(rows, cols)
    unsigned = np.ascontiguousarray(words).view(np.uint32).reshape(-1, _TILE[0] * _TILE[1] // 8)
    nibbles = (unsigned[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & np.uint32(15)
    tiles = np.empty((len(unsigned), 16 * 64), np.uint8)
    tiles[:, _order()] = nibbles.reshape(len(unsigned), -1)
    return tiles.reshape(rows // 16, cols // 64, 16, 64).transpose(0, 2, 1, 3).reshape(rows, cols)


def scales_to_marlin(scale: np.ndarray) -> np.ndarray:
    """Scales ``[groups, out]`` in Marlin's order: within 64 outputs when grouped, within 32 when one group covers all.

    Raises:
      ValueError: ``out`` is not a multiple of 64.
    """
    order = _scale_order(scale)
    return scale.reshape(-1, len(order))[:, order].reshape(scale.shape)


def scales_from_marlin(scale: np.ndarray) -> np.ndarray:
    """Inverse of :func:`scales_to_marlin`."""
    order = _scale_order(scale)
    back = np.empty_like(scale.reshape(-1, len(order)))
    back[:, order] = scale.reshape(-1, len(order))
    return back.reshape(scale.shape)


def _order() -> np.ndarray:
    """Place inside a row-major tile of each of its 1024 nibbles, in stored order."""
    thread, warp = np.arange(32)[:, None, None], np.arange(4)[None, :, None]
    fragment = np.arange(8)[None, None, :]
    row = thread % 4 * 2 + np.array([0, 1, 8, 9])[fragment % 4]
    column = 16 * warp + thread // 4 + 8 * (fragment // 4)
    return (row * _TILE[1] + column)[..., list(_NIBBLES)].ravel()


def _scale_order(scale: np.ndarray) -> np.ndarray:
    _check_sides(16, scale.shape[-1])
    if scale.shape[0] > 1:
        return (np.arange(8)[:, None] + 8 * np.arange(8)).ravel()
    return (2 * np.arange(4)[:, None] + np.array([0, 1, 8, 9, 16, 17, 24, 25])).ravel()


def _check_sides(rows: int, cols: int) -> None:
    if rows % 16 or cols % 64:
        raise ValueError(f"Marlin tiles are 16 x 64, they do not divide a weight of {rows} x {cols}")
