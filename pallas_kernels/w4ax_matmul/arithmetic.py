"""The arithmetic of one block inside a kernel: activations to codes, bytes to weights, exact sums to floats.

Every integer meets a float by way of 1.5 * 2**23, whose last bits hold it: one addition where a conversion is slow.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.w4ax_matmul.layout import W4AxLayout

MAGIC_BITS = 0x4B400000
MAGIC = 12582912.0
WEIGHT_UNIT = 1 / 16
"""Unpacked weights are 16 times too large, which the scale makes good exactly."""
OPERAND_RUN = 16
"""Inputs within which :func:`operand_place` moves them."""


def operand_place(at: jax.Array) -> jax.Array:
    """Input of a block that stands at a place of the Hopper kernel's operands: a thread has four places together.

    They are two inputs beside each other and the two that are eight further, see
    :mod:`pallas_kernels.w4ax_matmul.fragments`.
    """
    return (at & -OPERAND_RUN) | ((at & 12) >> 1) | ((at & 2) << 2) | (at & 1)


def block_scale(peak: jax.Array, wide: jax.Array, layout: W4AxLayout) -> jax.Array:
    """Distance of two codes, float32, where the largest magnitude is ``peak``; see :meth:`W4AxLayout.scale`."""
    return layout.scale(lax.bitcast_convert_type(peak, jnp.float32), wide)


def rounded(x: jax.Array, inverse: jax.Array, limit: jax.Array) -> jax.Array:
    """Codes of float32 values, int8: the nearest, half to even, and no larger than ``limit``.

    Args:
      x: the values.
      inverse: one over the distance of two codes.
      limit: largest code.
    """
    code = lax.clamp(-limit, x * inverse, limit)
    return lax.bitcast_convert_type(code + jnp.float32(MAGIC), jnp.int32).astype(jnp.int8)


def widening(lane: int, high: bool) -> str:
    """PTX that takes one nibble of each of four pairs of bytes, ``$1`` and ``$2``, to the high half of a byte, ``$0``.

    Four weights cost two or three instructions; the compiler makes ten and more of the same formula, for it sees no
    bytes beside each other.
    """
    pick = f"prmt.b32 $0, $1, $2, {'0x7531' if lane else '0x6420'};"
    keep = "and.b32 $0, $0, 0xF0F0F0F0;"
    return "\n".join([pick, keep] if high else [pick, "shl.b32 $0, $0, 4;", keep])


def widened(pairs: jax.Array, lane: int, high: bool) -> jax.Array:
    """What :func:`widening` does, int8; for the host."""
    byte = pairs >> jnp.uint16(8) if lane else pairs
    nibble = byte if high else byte << jnp.uint16(4)
    return (nibble & jnp.uint16(0xF0)).astype(jnp.int8)


def weights(pairs: jax.Array, lane: int, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """The first and the second half of a block of one output of each pair, int8 and 16 times the codes.

    Args:
      pairs: uint16 ``[half, n]``, bytes of two neighbouring outputs.
      lane: which of the two, 0 or 1.
      interpret: run by the host.
    """

    def half(high):
        if interpret:
            return widened(pairs, lane, high)
        return triton.assembly(widening(lane, high), pairs, jnp.int8, words=2, pack=4)

    return half(False), half(True)


def exact_sums(codes: tuple[jax.Array, ...], w: tuple[jax.Array, ...], *, interpret: bool) -> jax.Array:
    """Sum of the products of both halves as float32; below 2**22 whatever the codes, so exact."""
    halves = (triton.dot(a, b, interpret=interpret) for a, b in zip(codes, w, strict=True))
    total = sum(halves, jnp.int32(MAGIC_BITS))
    return lax.bitcast_convert_type(total, jnp.float32) - jnp.float32(MAGIC)
