"""Packed codes on a power-law grid: ``w = sign(k) m (|k|/n)^(1/a)``, with activations on the same law if asked."""

import jax
import jax.numpy as jnp

from compressjax.leaf.affine import spread_groups
from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack, power
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf(static=("bits", "group", "shape", "tile", "act_bits"))
class Power:
    """Weight of logical shape ``[in, out]`` quantised after the power map, stacked layers leading.

    Attributes:
      codes: ``k + n`` as uint32 ``[*lead, packed, out]``, see ``numerics.bitpack``.
      scale: float ``m [*lead, groups, out]``, or ``[*lead, 1, 1]`` for one per matrix.
      exponent: float32 ``a [*lead]``.
      bits: code width, 2 to 8; ``n = 2^(bits-1) - 1``.
      group: inputs that share a scale.
      shape: ``(in, out)``.
      tile: rows packed together.
      act_bits: width of the codes that ``matmul`` rounds its input to, token by token with the largest entry as the
        scale and the weight's exponent; None leaves inputs alone.
    """

    codes: jax.Array
    scale: jax.Array
    exponent: jax.Array
    bits: int
    group: int
    shape: tuple[int, int]
    tile: int
    act_bits: int | None


def pack_power(
    codes: jax.Array, scale: jax.Array, exponent: jax.Array, *, bits: int, group: int, act_bits: int | None = None
) -> Power:
    """Builds a :class:`Power` leaf from plain arrays.

    Args:
      codes: ``[*lead, in, out]`` with integer values in ``[-n, n]``.
      scale: float ``[*lead, groups, out]`` or ``[*lead, 1, 1]``, stored in its dtype.
      exponent: float32 ``[*lead]``.
      bits, act_bits: as in :class:`Power`.
      group: inputs per scale; -1 for all.

    Raises:
      ValueError: when a shape does not fit.
    """
    rows, cols = codes.shape[-2:]
    group = rows if group == -1 else group
    groups = -(-rows // group)
    if scale.shape[-2:] not in ((groups, cols), (1, 1)):
        raise ValueError(f"scale must end in {(groups, cols)} or (1, 1) for codes {codes.shape}, got {scale.shape}")
    if exponent.shape != codes.shape[:-2]:
        raise ValueError(f"exponent must have the leading shape {codes.shape[:-2]} of the codes, got {exponent.shape}")
    tile = bitpack.pack_tile(rows)
    words = bitpack.pack((codes + power.top_code(bits)).astype(jnp.uint8), bits, tile)
    return Power(
        codes=words,
        scale=scale,
        exponent=exponent,
        bits=bits,
        group=group,
        shape=(rows, cols),
        tile=tile,
        act_bits=act_bits,
    )


def unpack_power_codes(w: Power) -> jax.Array:
    """Codes ``k``, float32 ``[*lead, in, out]`` in ``[-n, n]``."""
    codes = bitpack.unpack(w.codes, w.bits, w.tile, w.shape[0])
    return codes.astype(jnp.float32) - power.top_code(w.bits)


def quantize_activations(x: jax.Array, exponent: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Codes ``[..., in]`` and scales ``[..., 1]`` of every token, float32; a token of zeros gets scale 1."""
    x = x.astype(jnp.float32)
    peak = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    peak = jnp.where(peak > 0, peak, 1)
    return power.encode(x, exponent, peak, bits), peak


def _wide_scale(w: Power) -> jax.Array:
    scale = w.scale.astype(jnp.float32)
    return scale if w.scale.shape[-2:] == (1, 1) else spread_groups(scale, w.group, w.shape[0])


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(Power)
@jax.jit
def _dense(w: Power):
    return power.decode(unpack_power_codes(w), w.exponent[..., None, None], _wide_scale(w), w.bits)


@logical_shape.register(Power)
def _shape(w: Power):
    return (*w.codes.shape[:-2], *w.shape)


def _inputs(x, w: Power):
    if w.act_bits is None:
        return x
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True))
    peak = jnp.where(peak > 0, peak, 1)
    return power.fake_quantize(x.astype(jnp.float32), w.exponent, peak, w.act_bits).astype(x.dtype)


@matmul.register(Power)
def _matmul(x, w: Power):
    return _inputs(x, w) @ dense(w).astype(x.dtype)


@matmul_t.register(Power)
def _matmul_t(x, w: Power):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))


@take.register(Power)
def _take(w: Power, ids):
    codes = bitpack.unpack_rows(w.codes, w.bits, w.tile, ids).astype(jnp.float32) - power.top_code(w.bits)
    scale = w.scale.astype(jnp.float32)
    at = ids // w.group if scale.shape[0] > 1 else jnp.zeros_like(ids)
    return power.decode(codes, w.exponent, jnp.take(scale, at, axis=0), w.bits)
