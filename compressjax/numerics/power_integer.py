"""Products of power codes in integers: every operand is decoded to an integer first, the sum is exact in int32."""

import jax
import jax.numpy as jnp

from compressjax.numerics.power import decode, top_code

_TABLE_TOP = 127


def square_codes(codes: jax.Array) -> jax.Array:
    """``sign(k) k²``, what codes of exponent 1/2 decode to up to the scale ``m / n²``; int8, so up to 4 bits.

    Args:
      codes: integers in ``[-7, 7]``.
    """
    codes = codes.astype(jnp.int32)
    return (codes * jnp.abs(codes)).astype(jnp.int8)


def table_codes(codes: jax.Array, exponent: jax.Array, bits: int) -> jax.Array:
    """``sign(k) round(127 (|k|/n)^(1/a))`` int8 for any exponent: decoded values to within ``m / 254``."""
    table = jnp.arange(top_code(bits) + 1, dtype=jnp.float32)
    table = jnp.round(_TABLE_TOP * decode(table, exponent, jnp.float32(1), bits)).astype(jnp.int8)
    codes = codes.astype(jnp.int32)
    return (jnp.sign(codes) * jnp.take(table, jnp.abs(codes)).astype(jnp.int32)).astype(jnp.int8)


def integer_product(
    x_codes: jax.Array,
    x_scale: jax.Array,
    w_codes: jax.Array,
    w_scale: jax.Array,
    *,
    exponent: float,
    x_bits: int,
    w_bits: int,
) -> jax.Array:
    """``x̂ ŵ`` of two code matrices with int8 operands and an int32 sum.

    Exact for exponent 1/2 and at most 4 bits (``|k|² <= 49``: no overflow below ``2^31 / 49²`` inputs); otherwise the
    operands come from a table of 127 steps.

    Args:
      x_codes: integers ``[tokens, in]`` in ``[-n, n]``; x_scale: float32 ``[tokens, 1]``.
      w_codes: integers ``[in, out]``; w_scale: float32 ``[1 , out]`` or ``[1, 1]``: a scale per group of inputs would
        not leave the sum.
      exponent: ``a`` of both operands.
      x_bits, w_bits: code widths.

    Returns:
      float32 ``[tokens, out]``.

    Raises:
      ValueError: for codes wider than 8 bits, an exponent that is not positive, or scales of another shape.
    """
    if not exponent > 0:
        raise ValueError(f"exponent must be > 0, got {exponent}")
    if not (x_bits in range(2, 9) and w_bits in range(2, 9)):
        raise ValueError(f"x_bits and w_bits must be in 2..8, got {x_bits} and {w_bits}")
    if x_scale.shape != (x_codes.shape[0], 1) or w_scale.shape not in ((1, w_codes.shape[1]), (1, 1)):
        raise ValueError(f"scales must be one per token and one per output, got {x_scale.shape} and {w_scale.shape}")

    def operand(codes, bits):
        if exponent == 0.5 and bits <= 4:
            return square_codes(codes), 1.0 / top_code(bits) ** 2
        return table_codes(codes, jnp.float32(exponent), bits), 1.0 / _TABLE_TOP

    (x, x_unit), (w, w_unit) = operand(x_codes, x_bits), operand(w_codes, w_bits)
    total = jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    return total.astype(jnp.float32) * (x_unit * w_unit) * x_scale * w_scale
