"""Packed integers whose scales and zeros are packed integers too, each with a scale and a zero per group of outputs."""

import jax
import jax.numpy as jnp

from compressjax.leaf.affine import spread_groups
from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula

# The decoded statistics are rounded to this type by definition of the format (see `decode_statistic`).
STATISTIC_DTYPE = jnp.float16


@leaf(static=("bits", "scale_bits", "zero_bits", "group", "stat_group", "shape", "tile"))
class TwoLevelAffine:
    """Uniformly quantised weight ``[in, out]`` with quantised statistics, stacked layers leading.

    With ``g = j // group`` and ``h = o // stat_group``:
    ``w[perm[j], o] = s[g, o] * (code[j, o] - z[g, o])``, ``s = scale_scale[g, h] * (scale_code - scale_zero[g, h])``
    and ``z = zero_scale[g, h] * (zero_code - zero_zero[g, h])``, both rounded to float16, the scale kept positive.

    Attributes:
      codes: uint32 ``[*lead, packed, out]``, inputs in the order of ``perm``, see ``numerics.bitpack``.
      scale_codes, zero_codes: uint32 ``[*lead, groups, packed]``, packed along ``out``.
      scale_scale, scale_zero: float ``[*lead, groups, out/stat_group]``, rounded up.
      zero_scale, zero_zero: the same, or None where ``zero_codes`` are the zeros themselves.
      perm: which input is the ``j``-th, ``[*lead, in]``, uint16 up to 65536 inputs, int32 beyond; None for as they are.
      bits, scale_bits, zero_bits: code widths, 1 to 8.
      group: inputs that share a scale; the last group is short when it does not divide ``in``.
      stat_group: outputs whose scales share a grid; the last is short when it does not divide ``out``.
      shape: ``(in, out)``.
      tile: rows packed together.
    """

    codes: jax.Array
    scale_codes: jax.Array
    zero_codes: jax.Array
    scale_scale: jax.Array
    scale_zero: jax.Array
    zero_scale: jax.Array | None
    zero_zero: jax.Array | None
    perm: jax.Array | None
    bits: int
    scale_bits: int
    zero_bits: int
    group: int
    stat_group: int
    shape: tuple[int, int]
    tile: int


def pack_two_level(
    codes: jax.Array,
    scale_codes: jax.Array,
    zero_codes: jax.Array,
    scale_grid: tuple[jax.Array, jax.Array],
    zero_grid: tuple[jax.Array, jax.Array] | None,
    *,
    bits: int,
    scale_bits: int,
    zero_bits: int,
    group: int,
    stat_group: int,
    perm: jax.Array | None = None,
) -> TwoLevelAffine:
    """Builds a :class:`TwoLevelAffine` leaf from plain arrays.

    Args:
      codes: integers ``[*lead, in, out]``, inputs in the order of ``perm``.
      scale_codes, zero_codes: integers ``[*lead, groups, out]``.
      scale_grid: (scale, zero) of the scale codes, floats ``[*lead, groups, ceil(out/stat_group)]``, stored in their
        dtype.
      zero_grid: the same for the zero codes, or None when those are the zeros.
      bits, scale_bits, zero_bits, group, stat_group: as in :class:`TwoLevelAffine`.
      perm: integers ``[*lead, in]`` or None.

    Raises:
      ValueError: for shapes that do not fit.
    """
    rows, cols = codes.shape[-2:]
    if group < 1 or stat_group < 1:
        raise ValueError(f"group and stat_group must be >= 1, got {group} and {stat_group}")
    groups, runs = -(-rows // group), -(-cols // stat_group)
    for name, a in (("scale_codes", scale_codes), ("zero_codes", zero_codes)):
        if a.shape[-2:] != (groups, cols):
            raise ValueError(f"{name} must end in {(groups, cols)} for codes {codes.shape}, got {a.shape}")
    for a in (*scale_grid, *(zero_grid or ())):
        if a.shape[-2:] != (groups, runs):
            raise ValueError(f"grids of statistics must end in {(groups, runs)}, got {a.shape}")
    if perm is not None and perm.shape[-1] != rows:
        raise ValueError(f"perm must name {rows} inputs, got {perm.shape}")
    tile = bitpack.pack_tile(rows)
    return TwoLevelAffine(
        codes=bitpack.pack(codes, bits, tile),
        scale_codes=_pack_last(scale_codes, scale_bits),
        zero_codes=_pack_last(zero_codes, zero_bits),
        scale_scale=scale_grid[0],
        scale_zero=scale_grid[1],
        zero_scale=None if zero_grid is None else zero_grid[0],
        zero_zero=None if zero_grid is None else zero_grid[1],
        perm=None if perm is None else perm.astype(jnp.uint16 if rows <= 2**16 else jnp.int32),
        bits=bits,
        scale_bits=scale_bits,
        zero_bits=zero_bits,
        group=group,
        stat_group=stat_group,
        shape=(rows, cols),
        tile=tile,
    )


def _pack_last(codes, bits):
    return jnp.swapaxes(bitpack.pack(jnp.swapaxes(codes, -1, -2), bits, 32), -1, -2)


def spread_runs(per_run: jax.Array, stat_group: int, cols: int) -> jax.Array:
    """Repeats ``[..., ceil(cols/stat_group)]`` along runs of outputs to ``[..., cols]``."""
    return jnp.repeat(per_run, stat_group, axis=-1)[..., :cols]


def decode_statistic(codes: jax.Array, scale: jax.Array, zero: jax.Array, stat_group: int) -> jax.Array:
    """``scale * (code - zero)`` rounded to float16, as float32 ``[..., out]``.

    Rounding is part of the format: a compiler may contract a product and a sum into one operation in one program and
    not in another, and the weight would differ in its last bit; behind a cast there is nothing to contract.

    Args:
      codes: integer values ``[..., out]``.
      scale, zero: ``[..., ceil(out/stat_group)]``.
      stat_group: outputs per run.
    """
    cols = codes.shape[-1]
    scale = spread_runs(scale.astype(jnp.float32), stat_group, cols)
    zero = spread_runs(zero.astype(jnp.float32), stat_group, cols)
    most = jnp.float32(jnp.finfo(STATISTIC_DTYPE).max)
    value = jnp.clip(scale * (codes.astype(jnp.float32) - zero), -most, most)
    return value.astype(STATISTIC_DTYPE).astype(jnp.float32)


def positive(scale: jax.Array) -> jax.Array:
    """``scale`` kept at or above the smallest positive float16."""
    return jnp.maximum(scale, jnp.float32(jnp.finfo(STATISTIC_DTYPE).smallest_subnormal))


def decoded_statistics(w: TwoLevelAffine) -> tuple[jax.Array, jax.Array]:
    """Scale and zero of every group, float32 ``[*lead, groups, out]`` each."""
    cols = w.shape[1]
    scale_codes = bitpack.unpack(w.scale_codes, w.scale_bits, 32, cols, axis=-1)
    zero_codes = bitpack.unpack(w.zero_codes, w.zero_bits, 32, cols, axis=-1)
    scale = positive(decode_statistic(scale_codes, w.scale_scale, w.scale_zero, w.stat_group))
    if w.zero_scale is None or w.zero_zero is None:
        return scale, zero_codes.astype(jnp.float32)
    return scale, decode_statistic(zero_codes, w.zero_scale, w.zero_zero, w.stat_group)


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@jax.jit
def _ordered_dense(w):
    codes = bitpack.unpack(w.codes, w.bits, w.tile, w.shape[0], dtype=jnp.float32)
    scale, zero = decoded_statistics(w)
    rows = w.shape[0]
    return spread_groups(scale, w.group, rows) * (codes - spread_groups(zero, w.group, rows))


@dense.register(TwoLevelAffine)
@jax.jit
def _dense(w: TwoLevelAffine):
    out = _ordered_dense(w)
    if w.perm is None:
        return out
    back = jnp.argsort(w.perm.astype(jnp.int32), axis=-1)
    return jnp.take_along_axis(out, back[..., None], axis=-2)


@logical_shape.register(TwoLevelAffine)
def _shape(w: TwoLevelAffine):
    return (*w.scale_scale.shape[:-2], *w.shape)


@matmul.register(TwoLevelAffine)
def _matmul(x, w: TwoLevelAffine):
    return kernel_or_formula(_matmul_kernel, _matmul_formula, kernel_refusal(x, w), x, w)


def _matmul_formula(x, w: TwoLevelAffine):
    if w.perm is None or w.perm.ndim > 1:
        return x @ dense(w).astype(x.dtype)
    return in_order(x, w) @ _ordered_dense(w).astype(x.dtype)


def in_order(x: jax.Array, w: TwoLevelAffine) -> jax.Array:
    """Activations in the order of the codes: they are fewer than weights, so it is they that are put in order."""
    return x if w.perm is None else jnp.take(x, w.perm.astype(jnp.int32), axis=-1)


def _matmul_kernel(x, w: TwoLevelAffine):
    from pallas_kernels.affine_matmul import affine_matmul

    base, layout = kernel_operands(w)
    return affine_matmul(in_order(x, w), *base, layout, implementation="triton")


def kernel_operands(w: TwoLevelAffine):
    """Arrays and layout of an unstacked leaf as ``pallas_kernels.affine_matmul`` takes them, inputs in code order."""
    from pallas_kernels.affine_matmul import AffineLayout

    scale, zero = (statistic.astype(STATISTIC_DTYPE) for statistic in decoded_statistics(w))
    layout = AffineLayout(bits=w.bits, group=w.group, tile=w.tile, rows=w.shape[0], cols=w.shape[1], zero_kind="real")
    return (w.codes, scale, zero), layout


def kernel_refusal(x: jax.Array, w: TwoLevelAffine) -> str | None:
    """Why the GPU kernel does not take this product, or None."""
    if w.scale_scale.ndim > 2:
        return "the weight is a stack of layers"
    if w.tile not in bitpack.TILES:
        return f"tile {w.tile} is none of {bitpack.TILES}"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None


@matmul_t.register(TwoLevelAffine)
def _matmul_t(x, w: TwoLevelAffine):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))


@take.register(TwoLevelAffine)
def _take(w: TwoLevelAffine, ids):
    row = ids if w.perm is None else jnp.take(jnp.argsort(w.perm.astype(jnp.int32)), ids)
    codes = bitpack.unpack_rows(w.codes, w.bits, w.tile, row).astype(jnp.float32)
    scale, zero = decoded_statistics(w)
    return jnp.take(scale, row // w.group, axis=0) * (codes - jnp.take(zero, row // w.group, axis=0))
