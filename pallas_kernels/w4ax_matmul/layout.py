"""What is fixed about a product of few-bit weights with activations rounded per token and block, and its checks.

    y[m, r] = sum_b s_x[m, b] s_w[b, r] sum_{k in b} q_x[m, k] q_w[k, r]

``q_x`` are the codes of ``x[m, perm]``: ``s_x = clip * max|x| / limit`` over the block, ``q_x = round(x / s_x)``, with
``limit = 2^(bits-1) - 1`` at ``hi_bits`` in blocks ``0 .. n_hi-1`` and at ``lo_bits`` in the others. Byte ``i`` of a
block of weights holds inputs ``i`` (low) and ``i + block/2`` (high). Channels beyond ``rows`` in the last block are 0.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantize_pack.layout import FLOATS, TINY

BLOCKS = (32, 64, 128, 256)
_OP = "w4ax_matmul"


class W4AxWeight(NamedTuple):
    """One matrix in signed 4-bit codes, and how its activations are rounded.

    Attributes:
      codes: uint8 ``[blocks * block / 2, cols]``.
      scale: float ``[blocks, cols]``.
      perm: uint16 or uint32 ``[rows]``, the input at each place of the blocks; None when they are in order.
      n_hi: int32 scalar, leading blocks whose activations take ``hi_bits``.
    """

    codes: jax.Array
    scale: jax.Array
    perm: jax.Array | None
    n_hi: jax.Array


class RoundedRows(NamedTuple):
    """Activations as they are multiplied.

    Attributes:
      codes: int8 ``[m, padded]``, in the order of the blocks.
      scale: float32 ``[blocks, m]``.
    """

    codes: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class W4AxLayout:
    """A matrix ``[rows, cols]``.

    Attributes:
      block: inputs of a block, 32, 64, 128 or 256.
      rows, cols: inputs and outputs.
      hi_bits, lo_bits: widths of the activations' codes, 2 to 8.
      act_clip: share of each block's range that its activation codes span, in (0, 1].
    """

    block: int
    rows: int
    cols: int
    hi_bits: int = 8
    lo_bits: int = 4
    act_clip: float = 1.0

    def __post_init__(self):
        if self.block not in BLOCKS:
            raise ValueError(f"{_OP}: block must be one of {BLOCKS}, got {self.block}")
        for name in ("rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_OP}: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("hi_bits", "lo_bits"):
            if getattr(self, name) not in range(2, 9):
                raise ValueError(f"{_OP}: {name} must be in 2..8, got {getattr(self, name)}")
        if self.lo_bits > self.hi_bits:
            raise ValueError(f"{_OP}: lo_bits must be at most hi_bits={self.hi_bits}, got {self.lo_bits}")
        if not 0 < self.act_clip <= 1:
            raise ValueError(f"{_OP}: act_clip must be in (0, 1], got {self.act_clip}")

    @property
    def refusal(self) -> str | None:
        """Why the kernel does not take the matrix, or None."""
        if self.block < 64:
            return f"half a block of {self.block} inputs is less deep than a tensor-core product of bytes, 32"
        return f"outputs are read in pairs, and there are {self.cols}" if self.cols % 2 else None

    @property
    def blocks(self) -> int:
        """Blocks of inputs; the last is filled up with zeros."""
        return -(-self.rows // self.block)

    @property
    def padded(self) -> int:
        """Inputs with those that fill up the last block."""
        return self.blocks * self.block

    @property
    def half(self) -> int:
        """Bytes of a block of one output."""
        return self.block // 2

    def scale(self, peak: jax.Array, wide: jax.Array) -> jax.Array:
        """Distance of two codes of blocks whose largest magnitude is ``peak``; 1 where a float32 code has none.

        Divisions by what many values share are products with its inverse, as XLA makes of them.
        """
        inverse = jnp.where(wide, *(np.float32(1) / np.float32(limit) for limit in self.limits))
        unit = jnp.float32(self.act_clip) * peak * inverse
        # Smaller ones have no inverse in float32. NaN is not below anything and stays.
        return jnp.where(unit < jnp.float32(TINY), jnp.float32(1), unit)

    @property
    def limits(self) -> tuple[float, float]:
        """Largest activation codes of wide and of narrow blocks."""
        return float(2 ** (self.hi_bits - 1) - 1), float(2 ** (self.lo_bits - 1) - 1)

    def limit(self, wide: jax.Array) -> jax.Array:
        """Largest activation code of blocks that are ``wide`` or not, float32."""
        return jnp.where(wide, *(jnp.float32(limit) for limit in self.limits))


def check_arrays(x: jax.Array, weight: W4AxWeight, layout: W4AxLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"{_OP}: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    shapes = {
        "codes": (layout.blocks * layout.half, layout.cols),
        "scale": (layout.blocks, layout.cols),
        "perm": (layout.rows,),
        "n_hi": (),
    }
    kinds = {
        "codes": (jnp.uint8,),
        "scale": FLOATS,
        "perm": (jnp.uint16, jnp.uint32),
        "n_hi": (jnp.int32,),
    }
    for name in shapes if weight.perm is not None else shapes.keys() - {"perm"}:
        array = getattr(weight, name)
        if array.shape != shapes[name]:
            raise ValueError(f"{_OP}: {name} must have shape {shapes[name]}, got {array.shape}")
        if array.dtype not in kinds[name]:
            wanted = " or ".join(jnp.dtype(kind).name for kind in kinds[name])
            raise TypeError(f"{_OP}: {name} must be {wanted}, got {array.dtype}")
