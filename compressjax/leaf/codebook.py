"""Packed indices into a small table of levels per group and output: ``w = levels[code]``."""

import jax
import jax.numpy as jnp

from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.numerics.one_equation import one_equation
from compressjax.ops import dense, logical_shape, matmul, matmul_t
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula


@leaf(static=("bits", "group", "shape", "tile"))
class Codebook:
    """Non-uniformly quantised weight of logical shape ``[in, out]``, stacked layers leading.

    ``w[i, o] = levels[g(i), code[i, o], o]`` with ``g(i) = i // group``.

    Attributes:
      codes: uint32 ``[*lead, packed, out]``, see ``numerics.bitpack``.
      levels: float ``[*lead, groups, K, out]`` with ``K <= 2**bits`` values per group and output.
      bits: code width, 1 to 8.
      group: inputs that share a table; the last group is short when it does not divide ``in``.
      shape: ``(in, out)``.
      tile: rows packed together.
    """

    codes: jax.Array
    levels: jax.Array
    bits: int
    group: int
    shape: tuple[int, int]
    tile: int


def pack_codebook(codes: jax.Array, levels: jax.Array, *, group: int, tile: int | None = None) -> Codebook:
    """Builds a :class:`Codebook` leaf from plain arrays; the code width follows from the number of levels.

    Args:
      codes: integers ``[*lead, in, out]`` in ``[0, K - 1]``.
      levels: float ``[*lead, groups, K, out]``, stored in its dtype.
      group: inputs per table; -1 means one table for all inputs of an output.
      tile: rows packed together; the largest that adds no padding when None.

    Raises:
      ValueError: when a shape does not fit or ``K`` is not in 2..256.
    """
    rows, cols = codes.shape[-2:]
    group = rows if group == -1 else group
    groups = -(-rows // group)
    count = levels.shape[-2]
    if (levels.shape[-3], levels.shape[-1]) != (groups, cols):
        raise ValueError(f"levels must end in ({groups}, K, {cols}) for codes {codes.shape}, got {levels.shape}")
    if not 2 <= count <= 256:
        raise ValueError(f"levels must have 2 to 256 entries per group, got {count}")
    bits = (count - 1).bit_length()
    tile = bitpack.pack_tile(rows) if tile is None else tile
    return Codebook(
        codes=bitpack.pack(codes, bits, tile), levels=levels, bits=bits, group=group, shape=(rows, cols), tile=tile
    )


def unpack_indices(w: Codebook) -> jax.Array:
    """Indices of a codebook leaf, uint8 ``[*lead, in, out]``."""
    return bitpack.unpack(w.codes, w.bits, w.tile, w.shape[0])


_MOST_SELECTS = 16
"""Levels up to which as many selects in one pass over the codes replace a gather, which accelerators do slowly."""


def _look_up_formula(codes, levels, *, group):
    """``codes [*lead, in, out]`` in ``levels [*lead, groups, K, out]``."""
    *lead, groups, count, cols = levels.shape
    rows, padded = codes.shape[-2], groups * group
    if padded > rows:
        codes = jnp.pad(codes, [(0, 0)] * len(lead) + [(0, padded - rows), (0, 0)])
    shape = (*lead, groups, group, cols)
    codes = codes.reshape(shape)
    if count > _MOST_SELECTS:
        out = jnp.take_along_axis(levels, codes.astype(jnp.int32), axis=-2, mode="clip")
    else:
        out = jnp.zeros(shape, levels.dtype)
        for k in range(count):
            out = jnp.where(codes == k, levels[..., k : k + 1, :], out)
    return out.reshape(*lead, padded, cols)[..., :rows, :]


_look_up = one_equation("look_up", _look_up_formula, lambda codes, levels, **_: codes.shape, lambda **_: jnp.float32)


# Under jit so that a model traces it once per kind and shape of weight, not at every product.
@dense.register(Codebook)
@jax.jit
def _dense(w: Codebook):
    return _look_up(unpack_indices(w), w.levels.astype(jnp.float32), group=w.group)


@logical_shape.register(Codebook)
def _shape(w: Codebook):
    return (*w.levels.shape[:-3], *w.shape)


@matmul.register(Codebook)
def _matmul(x, w: Codebook):
    return kernel_or_formula(_matmul_kernel, _matmul_formula, kernel_refusal(x, w), x, w)


def _matmul_formula(x, w: Codebook):
    return x @ dense(w).astype(x.dtype)


def _matmul_kernel(x, w: Codebook):
    from pallas_kernels.codebook_matmul import codebook_matmul

    base, layout = kernel_operands(w)
    return codebook_matmul(x, *base, layout, implementation="triton")


def kernel_operands(w: Codebook):
    """Arrays and layout of an unstacked leaf as ``pallas_kernels.codebook_matmul`` takes them."""
    from pallas_kernels.codebook_matmul import CodebookLayout

    layout = CodebookLayout(levels=w.levels.shape[1], group=w.group, tile=w.tile, rows=w.shape[0], cols=w.shape[1])
    return (w.codes, w.levels), layout


def kernel_refusal(x: jax.Array, w: Codebook) -> str | None:
    """Why the GPU kernel does not take this product, or None."""
    if w.levels.ndim > 3:
        return "the weight is a stack of layers"
    if w.tile not in bitpack.TILES:
        return f"tile {w.tile} is none of {bitpack.TILES}"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None


@matmul_t.register(Codebook)
def _matmul_t(x, w: Codebook):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))
