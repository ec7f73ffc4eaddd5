"""Packed integers with a scale and a zero per group of inputs: ``w = scale * (code - zero)``."""

from typing import Literal

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula

ZeroKind = Literal["int", "real", "none"]


@leaf(static=("bits", "group", "shape", "zero_kind", "tile"))
class Affine:
    """Uniformly quantised weight of logical shape ``[in, out]``, stacked layers leading.

    ``w[i, o] = scale[g(i), o] * (code[i, o] - zero[g(i), o])`` with ``g(i) = i // group`` or ``g_idx[i]``.

    Attributes:
      codes: uint32 ``[*lead, packed, out]``, see ``numerics.bitpack``.
      scale: float ``[*lead, groups, out]``; may be negative.
      zero: ``zero_kind`` "int": uint32 codes packed along ``out``, ``[*lead, groups, packed]``; "real": float
        ``[*lead, groups, out]``; "none": None, the zero is ``2**(bits-1)``.
      g_idx: int32 ``[*lead, in]`` group of each input, or None for contiguous groups.
      bits: code width, 1 to 8.
      group: inputs that share a scale; the last group is short when it does not divide ``in``.
      shape: ``(in, out)``.
      zero_kind: "int", "real" or "none".
      tile: rows packed together.
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array | None
    g_idx: jax.Array | None = None
    bits: int
    group: int
    shape: tuple[int, int]
    zero_kind: ZeroKind
    tile: int


def pack_affine(
    codes: jax.Array,
    scale: jax.Array,
    zero: jax.Array | None,
    *,
    bits: int,
    group: int,
    zero_kind: ZeroKind,
    g_idx: jax.Array | None = None,
    tile: int | None = None,
) -> Affine:
    """Builds an :class:`Affine` leaf from plain arrays.

    Args:
      codes: integers ``[*lead, in, out]`` in ``[0, 2**bits - 1]`` (saturated).
      scale: float ``[*lead, groups, out]``, stored in its dtype.
      zero: ``[*lead, groups, out]``: integers in ``[0, 2**bits - 1]`` for "int", floats for "real", None for "none".
      bits: code width, 1 to 8.
      group: inputs per group; -1 means one group for all inputs.
      zero_kind: "int", "real" or "none".
      g_idx: optional int32 ``[*lead, in]`` group of each input.
      tile: rows packed together; the largest that adds no padding when None.

    Raises:
      ValueError: when a shape does not fit or ``zero`` does not match ``zero_kind``.
    """
    rows, cols = codes.shape[-2:]
    group = rows if group == -1 else group
    if group < 1:
        raise ValueError(f"group must be >= 1 or -1 (all inputs), got {group}")
    groups = -(-rows // group)
    if scale.shape[-2:] != (groups, cols):
        raise ValueError(
            f"scale must end in {(groups, cols)} for codes {codes.shape} at group {group}, got {scale.shape}"
        )
    if zero_kind not in ("int", "real", "none"):
        raise ValueError(f"zero_kind must be 'int', 'real' or 'none', got {zero_kind!r}")
    if (zero is None) != (zero_kind == "none"):
        raise ValueError(f"zero_kind={zero_kind!r} does not go with zero {'missing' if zero is None else 'given'}")
    if zero is not None and zero.shape != scale.shape:
        raise ValueError(f"zero must have the shape of scale {scale.shape}, got {zero.shape}")
    tile = bitpack.pack_tile(rows) if tile is None else tile
    if zero is not None and zero_kind == "int":
        zero = jnp.swapaxes(bitpack.pack(jnp.swapaxes(zero, -1, -2), bits, 32), -1, -2)
    return Affine(
        codes=bitpack.pack(codes, bits, tile),
        scale=scale,
        zero=zero,
        g_idx=g_idx,
        bits=bits,
        group=group,
        shape=(rows, cols),
        zero_kind=zero_kind,
        tile=tile,
    )


def unpack_codes(w: Affine) -> jax.Array:
    """Codes of an affine leaf, uint8 ``[*lead, in, out]``."""
    return bitpack.unpack(w.codes, w.bits, w.tile, w.shape[0])


def unpack_zeros(w: Affine) -> jax.Array:
    """Zeros of an affine leaf as float32 ``[*lead, groups, out]``, whatever their kind."""
    if w.zero is None:
        return jnp.full(w.scale.shape, 2 ** (w.bits - 1), jnp.float32)
    if w.zero_kind == "real":
        return w.zero.astype(jnp.float32)
    return bitpack.unpack(w.zero, w.bits, 32, w.shape[1], axis=-1, dtype=jnp.float32)


def spread_groups(per_group: jax.Array, group: int, rows: int, g_idx: jax.Array | None = None) -> jax.Array:
    """Repeats ``[*lead, groups, out]`` along groups to ``[*lead, rows, out]``."""
    if g_idx is not None:
        return jnp.take_along_axis(per_group, g_idx[..., None], axis=-2)
    *lead, groups, cols = per_group.shape
    wide = jax.lax.broadcast_in_dim(per_group, (*lead, groups, group, cols), (*range(len(lead) + 1), len(lead) + 2))
    flat = jax.lax.reshape(wide, (*lead, groups * group, cols))
    return flat if groups * group == rows else jax.lax.slice_in_dim(flat, 0, rows, axis=len(lead))


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(Affine)
@jax.jit
def _dense(w: Affine):
    # Bare lax operations, as in unpack, for the same reason.
    codes = bitpack.unpack(w.codes, w.bits, w.tile, w.shape[0], dtype=jnp.float32)
    scale = jax.lax.convert_element_type(w.scale, jnp.float32)
    scale, zero = (spread_groups(a, w.group, w.shape[0], w.g_idx) for a in (scale, unpack_zeros(w)))
    return jax.lax.mul(scale, jax.lax.sub(codes, zero))


@logical_shape.register(Affine)
def _shape(w: Affine):
    return (*w.scale.shape[:-2], *w.shape)


@matmul.register(Affine)
def _matmul(x, w: Affine):
    return kernel_or_formula(_matmul_kernel, _matmul_formula, kernel_refusal(x, w), x, w)


def _matmul_formula(x, w: Affine):
    return x @ dense(w).astype(x.dtype)


def _matmul_kernel(x, w: Affine):
    from pallas_kernels.affine_matmul import affine_matmul

    base, layout = kernel_operands(w)
    return affine_matmul(x, *base, layout, implementation="triton")


def kernel_operands(w: Affine):
    """Arrays and layout of an unstacked leaf as ``pallas_kernels.affine_matmul`` takes them."""
    from pallas_kernels.affine_matmul import AffineLayout

    layout = AffineLayout(
        bits=w.bits, group=w.group, tile=w.tile, rows=w.shape[0], cols=w.shape[1], zero_kind=w.zero_kind
    )
    return (w.codes, w.scale, w.zero), layout


def kernel_refusal(x: jax.Array, w: Affine) -> str | None:
    """Why the GPU kernel does not take this product, or None."""
    if w.scale.ndim > 2:
        return "the weight is a stack of layers"
    if w.g_idx is not None:
        return "groups are not contiguous"
    if w.tile not in bitpack.TILES:
        return f"tile {w.tile} is none of {bitpack.TILES}"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None


@matmul_t.register(Affine)
def _matmul_t(x, w: Affine):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))


@take.register(Affine)
def _take(w: Affine, ids):
    codes = bitpack.unpack_rows(w.codes, w.bits, w.tile, ids).astype(jnp.float32)
    group = ids // w.group if w.g_idx is None else jnp.take(w.g_idx, ids)
    scale = jnp.take(w.scale.astype(jnp.float32), group, axis=0)
    return scale * (codes - jnp.take(unpack_zeros(w), group, axis=0))
