"""What is fixed about packed blocks, their arithmetic, and the check that arrays fit.

Every kind rounds ``(x - low) / unit + zero`` to the nearest integer, half to even, and clips it:

    kind      low          unit                             zero          codes                 kept
    minmax    min          (max - min) / (2^bits - 1)       0             0 .. 2^bits - 1       low, unit
    absmax    -            max |x| / (2^(bits-1) - 1)       2^(bits-1)    zero +- (2^(bits-1) - 1)  unit
    norm      -            |x|_2 / (2^(bits-1) - 1)         2^(bits-1)-1  zero +- (2^(bits-1) - 1)  |x|_2

At random, a number uniform on (-1/2, 1/2) is added first. What is kept is rounded to its dtype before it is used. A
block whose unit is 0, or below the least normal float32, has unit 0 and reads back as ``low`` or 0.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import Packing

Kind = Literal["minmax", "absmax", "norm"]
Along = Literal["flat", "rows", "cols"]
KINDS, ALONG = ("minmax", "absmax", "norm"), ("flat", "rows", "cols")
FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
TINY = float(np.finfo(np.float32).tiny)
MOST_BLOCK = 8192
_OP = "quantize_pack"


class Packed(NamedTuple):
    """Codes and what is needed to read them.

    Attributes:
      words: uint32, codes packed as :mod:`pallas_kernels.packing` says: ``[blocks * block * bits / 32]`` for "flat",
        ``[*lead, rows * bits / 32, cols]`` otherwise.
      scale: unit, or norm of kind "norm", of each block: ``[blocks]``, ``[*lead, rows / block, cols]`` for "rows",
        ``[*lead, rows, cols / block]`` for "cols".
      low: value of code 0 like ``scale`` for "minmax", None for other kinds.
    """

    words: jax.Array
    scale: jax.Array
    low: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackLayout:
    """How values are grouped, rounded and packed.

    Attributes:
      bits: 2, 4 or 8.
      block: values that share a scale, a power of two from 8, at most 8192.
      tile: values packed together, 32, 64, 128 or 256.
      kind: see the head of this module.
      along: "flat": the ravelled array is cut into blocks of whole tiles and packed along itself; a short last block is
        filled with its last value, or with zeros for "norm". "rows", "cols": matrices ``[..., rows, cols]`` packed
        along their rows, whose blocks are ``block`` rows of one column, within a tile, or ``block`` columns of one row.
      scale_dtype: of ``scale`` and ``low``.
    """

    bits: int
    block: int
    tile: int
    kind: Kind = "minmax"
    along: Along = "flat"
    scale_dtype: str = "float32"

    def __post_init__(self):
        if self.bits not in (2, 4, 8):
            raise ValueError(f"{_OP}: bits must be 2, 4 or 8, got {self.bits}")
        Packing(self.bits, self.tile, self.tile).check(_OP)
        if not 8 <= self.block <= MOST_BLOCK or self.block & (self.block - 1):
            raise ValueError(f"{_OP}: block must be a power of two in 8..{MOST_BLOCK}, got {self.block}")
        if self.kind not in KINDS:
            raise ValueError(f"{_OP}: kind must be one of {KINDS}, got {self.kind!r}")
        if self.along not in ALONG:
            raise ValueError(f"{_OP}: along must be one of {ALONG}, got {self.along!r}")
        if self.scale_dtype not in (dtype.__name__ for dtype in FLOATS):
            raise ValueError(f"{_OP}: scale_dtype must be a 16- or 32-bit float, got {self.scale_dtype!r}")
        if self.along == "flat" and self.block % self.tile:
            raise ValueError(f"{_OP}: a flat block must be whole tiles of {self.tile}, got {self.block}")
        if self.along == "rows" and self.tile % self.block:
            raise ValueError(f"{_OP}: a block of rows must divide the tile of {self.tile}, got {self.block}")

    @property
    def packing(self) -> Packing:
        """How the codes of one tile are packed."""
        return Packing(self.bits, self.tile, self.tile)

    @property
    def half(self) -> int:
        """Largest level on either side of zero of the symmetric kinds."""
        return 2 ** (self.bits - 1) - 1

    @property
    def zero(self) -> int:
        """Code of ``low``, or of 0."""
        return {"minmax": 0, "absmax": self.half + 1, "norm": self.half}[self.kind]

    @property
    def extremes(self) -> tuple[int, int]:
        """Least and largest code."""
        return (0, 2**self.bits - 1) if self.kind == "minmax" else (self.zero - self.half, self.zero + self.half)

    @property
    def steps(self) -> int:
        """What the range, the largest magnitude or the norm is divided by."""
        return 2**self.bits - 1 if self.kind == "minmax" else self.half

    def kept(self, value: jax.Array) -> jax.Array:
        """float32 as it comes back from ``scale_dtype``, which it saturates."""
        if self.scale_dtype == "float32":
            return value
        largest = float(jnp.finfo(self.scale_dtype).max)
        return jnp.clip(value, jnp.float32(-largest), jnp.float32(largest)).astype(self.scale_dtype).astype(jnp.float32)

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of ``words`` and ``scale`` for an array of a shape.

        Raises:
          ValueError: when the array has no matrix, or the matrix is not whole tiles or blocks.
        """
        if self.along == "flat":
            blocks = -(-int(np.prod(shape, dtype=np.int64)) // self.block)
            return (blocks * self.block * self.bits // 32,), (blocks,)
        if len(shape) < 2 or shape[-2] % self.tile or (self.along == "cols" and shape[-1] % self.block):
            raise ValueError(
                f"{_OP}: x must be [..., rows, cols] of whole tiles of {self.tile} rows"
                + (f" and blocks of {self.block} columns" if self.along == "cols" else "")
                + f", got shape {shape}"
            )
        *lead, rows, cols = shape
        scales = (rows // self.block, cols) if self.along == "rows" else (rows, cols // self.block)
        return (*lead, rows * self.bits // 32, cols), (*lead, *scales)


def check_values(x: jax.Array, layout: PackLayout) -> None:
    """Raises TypeError or ValueError for values that the layout cannot hold."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.size >= 2**31:
        raise ValueError(f"{_OP}: x must have fewer than 2**31 values, got shape {x.shape}")
    layout.shapes(x.shape)


def check_packed(packed: Packed, shape: tuple[int, ...], layout: PackLayout) -> None:
    """Raises ValueError unless the arrays hold an array of ``shape``."""
    words, scales = layout.shapes(shape)
    if packed.words.dtype != jnp.uint32 or packed.words.shape != words:
        raise ValueError(
            f"{_OP}: words must be uint32 of shape {words}, got {packed.words.dtype} of shape {packed.words.shape}"
        )
    if (packed.low is None) != (layout.kind != "minmax"):
        raise ValueError(f"{_OP}: low goes with kind 'minmax' and no other, the kind is {layout.kind!r}")
    for name, value in (("scale", packed.scale), ("low", packed.low)):
        if value is not None and (value.shape != scales or value.dtype != jnp.dtype(layout.scale_dtype)):
            raise ValueError(
                f"{_OP}: {name} must be {layout.scale_dtype} of shape {scales}, "
                f"got {value.dtype} of shape {value.shape}"
            )
