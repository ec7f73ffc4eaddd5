"""Codes as one little-endian stream of bits in 32-bit words: code ``i`` starts at bit ``i * bits``.

Both interchange formats store weights this way. For 2, 4 and 8 bits every code lies inside a word; at 3 bits, codes 10
and 21 of each 32 straddle two words, which is the same as the scheme GPTQ kernels describe word by word.
"""

import numpy as np


def pack_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes along their last axis.

    Args:
      codes: integers ``[..., n]``; values outside ``[0, 2**bits - 1]`` are saturated, since a wrapped code would land
        at the far end of the grid.
      bits: code width, 1 to 8.

    Returns:
      int32 ``[..., ceil(n * bits / 32)]``, bits beyond the last code zero.

    Raises:
      ValueError: when ``bits`` is not in 1..8.
    """
    _check_bits(bits)
    *lead, count = codes.shape
    codes = np.clip(codes, 0, 2**bits - 1).astype(np.uint32)
    codes = np.pad(codes, [(0, 0)] * len(lead) + [(0, -count % 32)]).reshape(*lead, -1, 32)
    words = np.zeros((*codes.shape[:-1], bits), np.uint32)
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        words[..., word] |= codes[..., field] << np.uint32(shift)
        if shift + bits > 32:
            words[..., word + 1] |= codes[..., field] >> np.uint32(32 - shift)
    return np.ascontiguousarray(words.reshape(*lead, -1)[..., : -(-count * bits // 32)]).view(np.int32)


def unpack_stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Inverse of :func:`pack_stream`.

    Args:
      words: 32-bit integers ``[..., m]``.
      bits: code width, 1 to 8.
      count: number of codes; ``m`` must be ``ceil(count * bits / 32)``.

    Returns:
      uint8 ``[..., count]``.

    Raises:
      ValueError: when ``bits`` is not in 1..8 or the words are too few or too many.
    """
    _check_bits(bits)
    *lead, stored = words.shape
    if stored != -(-count * bits // 32):
        raise ValueError(f"{count} codes of {bits} bits take {-(-count * bits // 32)} words, got {stored}")
    words = np.ascontiguousarray(words).view(np.uint32)
    words = np.pad(words, [(0, 0)] * len(lead) + [(0, -stored % bits)]).reshape(*lead, -1, bits)
    codes = np.empty((*words.shape[:-1], 32), np.uint8)
    mask = np.uint32(2**bits - 1)
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        value = words[..., word] >> np.uint32(shift)
        if shift + bits > 32:
            value = value | (words[..., word + 1] << np.uint32(32 - shift))
        codes[..., field] = value & mask
    return codes.reshape(*lead, -1)[..., :count]


def _check_bits(bits: int) -> None:
    if bits not in range(1, 9):
        raise ValueError(f"bits must be in 1..8, got {bits}")
