"""Signed 4-bit integers, two to a byte, both from one block: channel ``i`` low, channel ``i + block/2`` high.

Widening a nibble to a byte needs a sign extension, unless it is moved to the high half of the byte: there it stands for
16 times its value. The 16 goes into a scale, an exact power of two, so one mask gives the high channels and one shift
the low ones. Shifts are done on unsigned bytes and reinterpreted last, for signed shifts differ between backends.
"""

import jax
import jax.numpy as jnp


def pack_nibbles(codes: jax.Array, block: int) -> jax.Array:
    """Packs signed codes along their second-last axis.

    Args:
      codes: integers ``[..., blocks * block, R]`` in -8..7 (saturated).
      block: channels per block, even.

    Returns:
      uint8 ``[..., blocks * block / 2, R]``; byte ``i`` of a block holds channels ``i`` and ``i + block/2``.

    Raises:
      ValueError: when ``block`` is odd or does not divide the channels.
    """
    *lead, channels, cols = codes.shape
    if block < 2 or block % 2 or channels % block:
        raise ValueError(f"block must be even and divide the {channels} channels, got {block}")
    codes = jnp.clip(codes, -8, 7).astype(jnp.int8).view(jnp.uint8) & jnp.uint8(15)
    low, high = jnp.split(codes.reshape(*lead, channels // block, block, cols), 2, axis=-2)
    return (low | (high << jnp.uint8(4))).reshape(*lead, channels // 2, cols)


def widen_nibbles(packed: jax.Array) -> jax.Array:
    """One block of bytes as int8 of **16 times** the codes.

    Args:
      packed: uint8 ``[..., block/2, R]``.

    Returns:
      int8 ``[..., block, R]``.
    """
    low, high = packed << jnp.uint8(4), packed & jnp.uint8(0xF0)
    return jnp.concatenate([low, high], axis=-2).view(jnp.int8)


def unpack_nibbles(packed: jax.Array, block: int) -> jax.Array:
    """Inverse of :func:`pack_nibbles`.

    Args:
      packed: uint8 ``[..., blocks * block / 2, R]``.
      block: channels per block.

    Returns:
      int8 ``[..., blocks * block, R]``.
    """
    *lead, rows, cols = packed.shape
    widened = widen_nibbles(packed.reshape(*lead, rows // (block // 2), block // 2, cols))
    return (widened // jnp.int8(16)).reshape(*lead, rows * 2, cols)
