"""Symmetric integers with one scale per row and per block of channels, and exact products of such blocks.

``x[m, b, k] ~ s[m, b] q[m, b, k]`` with ``|q| <= limit[b]``; the limits may differ between blocks, which is how a few
blocks run at 8 bits while the others run at 4. Products inside a block are sums of integers and therefore exact; the
sum over blocks, each with its own scales, is float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCKS = (32, 64, 128, 256)
"""Block widths that integer matrix units take."""


class IntegerBlocks(NamedTuple):
    """Rows of blocked integers.

    Attributes:
      codes: int8 or int16 ``[M, blocks, block]``.
      scale: float32 ``[M, blocks]``.
    """

    codes: jax.Array
    scale: jax.Array


def largest_code(bits: int) -> int:
    """Largest magnitude of a symmetric code, ``2**(bits-1) - 1``; the lone ``-2**(bits-1)`` is not used.

    Raises:
      ValueError: when ``bits`` is not in 2..8 and not 16.
    """
    if bits not in (*range(2, 9), 16):
        raise ValueError(f"bits of an integer block must be in 2..8 or 16, got {bits}")
    return 2 ** (bits - 1) - 1


def split_blocks(x: jax.Array, block: int) -> jax.Array:
    """``[..., channels]`` as ``[..., blocks, block]``, the last block filled up with zeros."""
    channels = x.shape[-1]
    blocks = -(-channels // block)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * block - channels)])
    return x.reshape(*x.shape[:-1], blocks, block)


def block_scales(x: jax.Array, limit: jax.Array, clip: float = 1.0) -> jax.Array:
    """Scales of blocked rows: ``clip * max|x| / limit`` per row and block, 1 for blocks of zeros.

    Args:
      x: float32 ``[M, blocks, block]``.
      limit: float32 ``[blocks]``, largest code of each block.
      clip: share of the range that is kept, in (0, 1]; values beyond it saturate.

    Returns:
      float32 ``[M, blocks]``.
    """
    peak = jnp.max(jnp.abs(x), axis=-1)
    return jnp.where(peak == 0, jnp.float32(1), clip * peak / limit[None, :])


def quantize_blocks(x: jax.Array, limit: jax.Array, *, bits: int, clip: float = 1.0) -> IntegerBlocks:
    """Rounds blocked rows to the nearest code, ``clip(round(x / s), -limit, limit)``.

    Args:
      x: float32 ``[M, blocks, block]``.
      limit: float32 ``[blocks]``, at most ``largest_code(bits)``.
      bits: widest code among the blocks, which decides the dtype.
      clip: as in :func:`block_scales`.
    """
    scale = block_scales(x, limit, clip)
    bound = limit[None, :, None]
    codes = jnp.clip(jnp.round(x / scale[..., None]), -bound, bound)
    return IntegerBlocks(codes.astype(jnp.int8 if bits <= 8 else jnp.int16), scale)


def dequantize_blocks(blocks: IntegerBlocks) -> jax.Array:
    """``s q`` as float32 ``[M, blocks, block]``."""
    return blocks.scale[..., None] * blocks.codes.astype(jnp.float32)


def block_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """Exact integer product ``[M, K] x [K, R] -> int32 [M, R]``.

    The caller sees to it that ``K max|x| max|w|`` stays below ``2**31``; codes of 16 bits against int8 weights do for
    any block of at most 256 channels.

    Args:
      x: int8 or int16.
      w: int8.
    """
    if x.dtype != w.dtype:
        w = w.astype(x.dtype)
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)


def blocked_matmul(
    x: IntegerBlocks, packed: Any, scale: jax.Array, unpack: Callable[[Any], jax.Array] = lambda w: w
) -> jax.Array:
    """``y[m, r] = sum_b s_x[m, b] s_w[b, r] (sum_k q_x[m, b, k] q_w[b, k, r])``.

    One block at a time, so that neither the unpacked weight nor the products of all blocks are ever held, and the
    float32 sum over blocks always runs in the same order.

    Args:
      x: the activations.
      packed: arrays that lead with the blocks.
      scale: ``s_w``, float32 ``[blocks, R]``.
      unpack: one block of ``packed`` to int8 ``[block, R]``.

    Returns:
      float32 ``[M, R]``.
    """

    def scaled(inputs):
        codes, s_x, block, s_w = inputs
        exact = block_product(codes, unpack(block)).astype(jnp.float32)
        return exact * s_x[:, None] * s_w[None, :]

    by_block = jnp.swapaxes(x.codes, 0, 1), jnp.swapaxes(x.scale, 0, 1), packed, scale
    # The first block starts the sum: unlike zeros it varies over the mesh axes that its operands vary over.
    first, rest = (jax.tree.map(lambda a, cut=cut: a[cut], by_block) for cut in (0, slice(1, None)))
    return jax.lax.scan(lambda total, inputs: (total + scaled(inputs), None), scaled(first), rest)[0]
