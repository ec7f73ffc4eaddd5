"""INT4 weights whose input is quantised too: a few blocks of channels at 8 bits, the others at 4.

The leaf carries everything the product needs: which channels share a block (``perm``), how many leading blocks run at
the wide precision (``n_hi``), and the weights in the byte layout that an INT4 kernel reads (``numerics.nibbles``).
Zhao et al., 2024, "COMET", arXiv 2410.12168.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from compressjax.leaf.registration import leaf
from compressjax.numerics.integer_blocks import (
    BLOCKS,
    IntegerBlocks,
    blocked_matmul,
    dequantize_blocks,
    largest_code,
    quantize_blocks,
    split_blocks,
)
from compressjax.numerics.nibbles import pack_nibbles, unpack_nibbles, widen_nibbles
from compressjax.ops import dense, logical_shape, matmul
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula


@leaf(static=("block", "hi_bits", "lo_bits", "act_clip", "shape"))
class W4Ax:
    """Weight of logical shape ``[in, out]`` in signed 4-bit codes, stacked layers leading; quantises what it reads.

    ``y[m, o] = sum_b s_x[m, b] scale[b, o] sum_{k in b} q_x[m, k] codes[k, o]``, where ``q_x`` are the codes of
    ``x[m, perm]``: rounded per token and block to ``hi_bits`` in blocks ``0 .. n_hi-1`` and to ``lo_bits`` in the
    others. Channels beyond ``in`` in the last block are zeros.

    ``n_hi`` is an array, one count per stacked layer, so that layers with fewer outliers do not pay for those with
    more; a kernel's two loops over the wide and the narrow blocks take their bounds from it.

    Attributes:
      codes: uint8 ``[*lead, blocks * block / 2, out]``, see ``numerics.nibbles``.
      scale: float ``[*lead, blocks, out]``.
      perm: unsigned ``[*lead, in]``, the input at each place of the blocks; None when they are in order.
      n_hi: int32 ``[*lead]``.
      block: channels per block, 32, 64, 128 or 256.
      hi_bits, lo_bits: widths of activation codes, 2 to 8 or 16, ``lo_bits <= hi_bits``.
      act_clip: share of each block's range that its activation codes span, in (0, 1].
      shape: ``(in, out)``.
    """

    codes: jax.Array
    scale: jax.Array
    perm: jax.Array | None
    n_hi: jax.Array
    block: int
    hi_bits: int
    lo_bits: int
    act_clip: float
    shape: tuple[int, int]


def check_activation_bits(hi_bits: int, lo_bits: int, act_clip: float, name: str) -> None:
    """Raises ValueError naming ``name`` for widths or a clip that no leaf can have."""
    for field, bits in (("hi_bits", hi_bits), ("lo_bits", lo_bits)):
        if bits not in (*range(2, 9), 16):
            raise ValueError(f"{name}.{field} must be in 2..8 or 16, got {bits}")
    if lo_bits > hi_bits:
        raise ValueError(f"{name}.lo_bits must be at most hi_bits={hi_bits}, got {lo_bits}")
    if not 0 < act_clip <= 1:
        raise ValueError(f"{name}.act_clip must be in (0, 1], got {act_clip}")


def stored_permutation(perm: jax.Array) -> jax.Array:
    """A permutation in the smallest unsigned dtype that holds it, 16 bits up to 65,536 inputs."""
    return perm.astype(jnp.uint16 if perm.shape[-1] <= 2**16 else jnp.uint32)


def pack_w4ax(
    codes: jax.Array,
    scale: jax.Array,
    perm: jax.Array | None,
    n_hi: jax.Array | int,
    *,
    block: int,
    hi_bits: int = 8,
    lo_bits: int = 4,
    act_clip: float = 1.0,
) -> W4Ax:
    """Builds a :class:`W4Ax` leaf from plain arrays.

    Args:
      codes: integers ``[*lead, in, out]`` in -8..7, in block order.
      scale: float ``[*lead, ceil(in / block), out]``, stored in its dtype.
      perm: integers ``[*lead, in]``, a permutation, or None.
      n_hi: blocks at ``hi_bits``, ``[*lead]`` or one for all layers.
      block, hi_bits, lo_bits, act_clip: as in :class:`W4Ax`.

    Raises:
      ValueError: for a block, a width or a shape that does not fit, or, where the values are known, a ``perm`` that is
        no permutation or an ``n_hi`` beyond the blocks.
    """
    *lead, rows, cols = codes.shape
    if block not in BLOCKS:
        raise ValueError(f"W4Ax.block must be one of {BLOCKS}, got {block}")
    if rows < block:
        raise ValueError(f"W4Ax.block={block} is wider than the {rows} inputs of a weight of shape {(rows, cols)}")
    check_activation_bits(hi_bits, lo_bits, act_clip, "W4Ax")
    blocks = -(-rows // block)
    if scale.shape != (*lead, blocks, cols):
        raise ValueError(f"scale must be {(*lead, blocks, cols)} for codes {codes.shape}, got {scale.shape}")
    n_hi = jnp.broadcast_to(jnp.asarray(n_hi, jnp.int32), tuple(lead))
    if not isinstance(n_hi, Tracer) and bool(jnp.any((n_hi < 0) | (n_hi > blocks))):
        raise ValueError(f"n_hi must be in 0..{blocks}, got {n_hi.tolist()}")
    if perm is not None:
        _check_permutation(perm, (*lead, rows))
        perm = stored_permutation(perm)
    padded = jnp.pad(codes, [(0, 0)] * len(lead) + [(0, blocks * block - rows), (0, 0)])
    return W4Ax(
        codes=pack_nibbles(padded, block),
        scale=scale,
        perm=perm,
        n_hi=n_hi,
        block=block,
        hi_bits=hi_bits,
        lo_bits=lo_bits,
        act_clip=act_clip,
        shape=(rows, cols),
    )


def _check_permutation(perm, shape):
    if perm.shape != shape:
        raise ValueError(f"perm must be {shape}, one entry per input, got {perm.shape}")
    if isinstance(perm, Tracer):
        return
    counted = jnp.sort(perm.astype(jnp.int32), axis=-1)
    if not bool(jnp.all(counted == jnp.broadcast_to(jnp.arange(shape[-1]), shape))):
        raise ValueError(f"perm is not a permutation of 0..{shape[-1] - 1}")


def block_limits(w: W4Ax) -> jax.Array:
    """Largest activation code of every block of one layer, float32 ``[blocks]``."""
    wide = jnp.arange(w.scale.shape[-2]) < w.n_hi
    return jnp.where(wide, jnp.float32(largest_code(w.hi_bits)), jnp.float32(largest_code(w.lo_bits)))


def quantize_act(x: jax.Array, w: W4Ax) -> IntegerBlocks:
    """What the leaf makes of its input: permuted, blocked, rounded per token and block.

    Args:
      x: ``[M, in]``.
      w: one layer.
    """
    x = x.astype(jnp.float32)
    if w.perm is not None:
        x = jnp.take(x, w.perm, axis=-1)
    blocks = split_blocks(x, w.block)
    return quantize_blocks(blocks, block_limits(w), bits=w.hi_bits, clip=w.act_clip)


def act_as_read(x: jax.Array, w: W4Ax) -> jax.Array:
    """The input that the leaf really multiplies, back in its own order: float32 ``[M, in]``."""
    flat = dequantize_blocks(quantize_act(x, w)).reshape(x.shape[0], -1)[:, : w.shape[0]]
    return flat if w.perm is None else flat[:, jnp.argsort(w.perm)]


def activation_bits(w: W4Ax) -> float:
    """Bits per activation, scales of 32 bits included, averaged over the layers; padding counts as channels.

    ``hi f + lo (1 - f) + 32 / block`` with ``f`` the share of wide blocks. Reads values, so not under jit.
    """
    share = float(jnp.mean(w.n_hi.astype(jnp.float32))) / w.scale.shape[-2]
    padded = w.scale.shape[-2] * w.block / w.shape[0]
    return (w.hi_bits * share + w.lo_bits * (1 - share) + 32 / w.block) * padded


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(W4Ax)
@jax.jit
def _dense(w: W4Ax):
    rows, cols = w.shape
    blocks = w.scale.shape[-2]
    codes = unpack_nibbles(w.codes, w.block).astype(jnp.float32)
    codes = codes.reshape(*codes.shape[:-2], blocks, w.block, cols)
    values = (w.scale.astype(jnp.float32)[..., None, :] * codes).reshape(*codes.shape[:-3], -1, cols)[..., :rows, :]
    if w.perm is None:
        return values
    return jnp.take_along_axis(values, jnp.argsort(w.perm, axis=-1)[..., None], axis=-2)


@logical_shape.register(W4Ax)
def _shape(w: W4Ax):
    return (*w.scale.shape[:-2], *w.shape)


@jax.custom_vjp
def _product(x_mi, w):
    packed = w.codes.reshape(w.scale.shape[-2], w.block // 2, w.shape[1])
    # The unpacked codes are 16 times too large, which the scale makes good exactly.
    return blocked_matmul(quantize_act(x_mi, w), packed, w.scale.astype(jnp.float32) / 16, widen_nibbles)


def _product_fwd(x_mi, w):
    return _product(x_mi, w), (x_mi, w)


def _product_bwd(kept, g):
    x, w = kept
    read = act_as_read(x, w)
    _, pull = jax.vjp(lambda read, w: jnp.matmul(read, dense(w)), read, w)
    d_read, d_w = pull(g)
    if w.act_clip < 1:
        # Saturated values do not move the output.
        d_read = jnp.where(jnp.abs(x) > _reach(x, w), 0, d_read)
    return d_read.astype(x.dtype), d_w


_product.defvjp(_product_fwd, _product_bwd)


def _reach(x, w):
    """Largest magnitude that each channel's block can show, ``[M, in]``, in the order of ``x``."""
    blocks = quantize_act(x, w)
    reach = jnp.repeat(blocks.scale * block_limits(w)[None, :], w.block, axis=-1)[:, : w.shape[0]]
    return reach if w.perm is None else reach[:, jnp.argsort(w.perm)]


@matmul.register(W4Ax)
def _matmul(x, w: W4Ax):
    """Integer products; straight through the rounding of ``x`` in reverse mode."""
    return kernel_or_formula(_matmul_kernel, _matmul_formula, kernel_refusal(x, w), x, w)


@jax.jit
def _matmul_formula(x, w: W4Ax):
    flat = x.reshape(-1, x.shape[-1])
    y = _product(flat.astype(jnp.float32), w)
    return y.reshape(*x.shape[:-1], w.shape[1]).astype(x.dtype)


def _matmul_kernel(x, w: W4Ax):
    from pallas_kernels.w4ax_matmul import w4ax_matmul

    return w4ax_matmul(x, *kernel_operands(w), implementation="triton")


def kernel_operands(w: W4Ax):
    """Arrays and layout of an unstacked leaf as ``pallas_kernels.w4ax_matmul`` takes them."""
    from pallas_kernels.w4ax_matmul import W4AxLayout, W4AxWeight

    (rows, cols), bits = w.shape, {"hi_bits": w.hi_bits, "lo_bits": w.lo_bits}
    layout = W4AxLayout(block=w.block, rows=rows, cols=cols, act_clip=w.act_clip, **bits)
    return W4AxWeight(w.codes, w.scale, w.perm, w.n_hi), layout


def kernel_refusal(x: jax.Array, w: W4Ax) -> str | None:
    """Why the GPU kernel does not take this product, or None."""
    if w.scale.ndim > 2:
        return "the weight is a stack of layers"
    if w.hi_bits > 8:
        return f"activation codes of {w.hi_bits} bits are no bytes"
    if w.block < 64:
        return f"half a block of {w.block} inputs is less deep than a tensor-core product of bytes"
    if w.shape[1] % 2:
        return f"outputs are read in pairs, and there are {w.shape[1]}"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None
