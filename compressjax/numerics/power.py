"""The power map as a quantiser: ``code = sign(x) round(n |x/m|^a)``, ``x̂ = sign(code) m |code/n|^(1/a)``.

The maps ``x -> sign(x)|x|^a`` are the continuous automorphisms of the positive reals under multiplication, so products
of quantised numbers are products of codes (Yvinec et al., 2023, arXiv 2301.09858, section 3). ``n = 2^(b-1) - 1``;
``a = 1`` is the symmetric uniform quantiser, ``a < 1`` spends levels near zero.
"""

import functools

import jax
import jax.numpy as jnp


def top_code(bits: int) -> int:
    """Largest code ``n`` of a width of ``bits``; codes run from ``-n`` to ``n``."""
    return 2 ** (bits - 1) - 1


def magnitude(x: jax.Array, exponent: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """``n |x/m|^a`` before rounding, clipped to ``[0, n]``."""
    share = jnp.clip(jnp.abs(x) / scale, 0, 1)
    inside = jnp.where(share > 0, share, 1)
    return jnp.where(share > 0, top_code(bits) * inside**exponent, 0)


def encode(x: jax.Array, exponent: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """Nearest codes in the power domain, float32 with integer values in ``[-n, n]``; halves go to even.

    Args:
      x: float32.
      exponent: ``a > 0``, broadcast against ``x``.
      scale: ``m > 0``, what the top code decodes to, broadcast against ``x``; larger values saturate.
      bits: code width, 2 to 8.
    """
    return jnp.sign(x) * jnp.round(magnitude(x, exponent, scale, bits))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def decode(codes: jax.Array, exponent: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """``sign(k) m (|k|/n)^(1/a)``, differentiable in all three.

    The slope in ``k`` is that at ``max(|k|, 1/2)``: the true one is 0 at ``k = 0`` for ``a < 1``, and a code that is
    being learned would never leave it.
    """
    return jnp.sign(codes) * scale * _root(jnp.abs(codes) / top_code(bits), exponent)


def _root(share, exponent):
    inside = jnp.where(share > 0, share, 1)
    return jnp.where(share > 0, inside ** (1 / exponent), 0)


@decode.defjvp
def _decode_jvp(bits, primals, tangents):
    codes, exponent, scale = primals
    d_codes, d_exponent, d_scale = tangents
    n = top_code(bits)
    size, sign = jnp.abs(codes), jnp.sign(codes)
    # One logarithm and one exponential an entry: powers are most of what learning codes costs.
    log = jnp.where(size > 0, jnp.log(jnp.where(size > 0, size / n, 1)), 0)
    root = jnp.where(size > 0, jnp.exp(log / exponent), 0)
    steepness = jnp.where(size > 0.5, root * n / jnp.maximum(size, 0.5), (0.5 / n) ** (1 / exponent - 1))
    slope = scale / (exponent * n) * steepness
    by_exponent = -sign * scale * root * log / exponent**2
    out = sign * scale * root
    return out, slope * d_codes + by_exponent * d_exponent + sign * root * d_scale


# Up to this many positive levels, comparing with every threshold costs less than two powers.
_MOST_COMPARED = 15


def nearest_error(x: jax.Array, exponent: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """``(x - decode(encode(x)))²`` for the searches of a grid, which read it for many grids and need no codes.

    Powers are taken of the thresholds between levels instead of every entry, where levels are few. A number within
    rounding of a threshold may then go to the other of its two levels.

    Args:
      x, exponent, scale, bits: as in :func:`encode`; ``exponent`` is one for all entries.
    """
    n = top_code(bits)
    if n > _MOST_COMPARED:
        return jnp.square(x - decode(encode(x, exponent, scale, bits), exponent, scale, bits))
    levels = (jnp.arange(n + 1, dtype=jnp.float32) / n) ** (1 / exponent)
    thresholds = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n) ** (1 / exponent)
    share = jnp.abs(x) / scale
    read = jnp.zeros_like(share)
    for j in range(n):
        read = read + jnp.where(share > thresholds[j], levels[j + 1] - levels[j], 0)
    return jnp.square(scale * (share - read))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def fake_quantize(x: jax.Array, exponent: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    """``decode(encode(x))`` whose slope in ``x`` is 1 inside the range and 0 beyond it; 0 in the others."""
    return decode(encode(x, exponent, scale, bits), exponent, scale, bits)


@fake_quantize.defjvp
def _fake_quantize_jvp(bits, primals, tangents):
    x, exponent, scale = primals
    return fake_quantize(x, exponent, scale, bits), jnp.where(jnp.abs(x) <= scale, tangents[0], 0)


def soft_round(v: jax.Array, beta: jax.Array) -> jax.Array:
    """A smooth staircase through the integers that becomes rounding as ``beta`` grows.

    ``floor(v) + (σ(β(f - 1/2)) - σ(-β/2)) / (σ(β/2) - σ(-β/2))`` with ``f`` the fractional part: integers stay where
    they are at every ``beta``.
    """
    whole = jnp.floor(v)
    low = jax.nn.sigmoid(-beta / 2)
    return whole + (jax.nn.sigmoid(beta * (v - whole - 0.5)) - low) / (1 - 2 * low)
