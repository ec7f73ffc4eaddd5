"""What is fixed about a packed affine matrix, and the check that arrays fit it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing

ZeroKind = Literal["int", "real", "none"]
ACTIVATIONS = (jnp.bfloat16, jnp.float16, jnp.float32)
ZERO_TILE = 32
"""Zeros are packed along the outputs in tiles of this many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffineLayout:
    """A matrix ``[rows, cols]`` with ``w[i, o] = scale[i // group, o] * (code[i, o] - zero[i // group, o])``.

    Attributes:
      bits: code width, 1 to 8.
      group: inputs that share a scale; the last group may be short.
      tile: rows packed together: 32, 64, 128 or 256.
      rows, cols: inputs and outputs.
      zero_kind: "int": codes packed along the outputs; "real": floats; "none": the zero is ``2**(bits-1)``.
    """

    bits: int
    group: int
    tile: int
    rows: int
    cols: int
    zero_kind: ZeroKind

    def __post_init__(self):
        self.packing.check("affine_matmul")
        if self.group < 1:
            raise ValueError(f"affine_matmul: group must be at least 1, got {self.group}")
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"affine_matmul: rows and cols must be at least 1, got {self.rows} and {self.cols}")
        if self.zero_kind not in ("int", "real", "none"):
            raise ValueError(f"affine_matmul: zero_kind must be 'int', 'real' or 'none', got {self.zero_kind!r}")

    @property
    def packing(self) -> Packing:
        """How the codes are packed along the inputs."""
        return Packing(self.bits, self.tile, self.rows)

    @property
    def zero_packing(self) -> Packing:
        """How integer zeros are packed along the outputs."""
        return Packing(self.bits, ZERO_TILE, self.cols)

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return -(-self.rows // self.group)


def check_arrays(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | None, layout: AffineLayout
) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in ACTIVATIONS:
        raise TypeError(f"affine_matmul: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"affine_matmul: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    wanted = (layout.packing.tiles * layout.packing.words, layout.cols)
    if codes.dtype != jnp.uint32:
        raise TypeError(f"affine_matmul: codes must be uint32 words, got {codes.dtype}")
    if codes.shape != wanted:
        raise ValueError(
            f"affine_matmul: codes must have shape {wanted} for {layout.bits} bits, tile {layout.tile} and a matrix "
            f"{(layout.rows, layout.cols)}, got {codes.shape}"
        )
    per_group = (layout.groups, layout.cols)
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(f"affine_matmul: scale must be floating point, got {scale.dtype}")
    if scale.shape != per_group:
        raise ValueError(f"affine_matmul: scale must have shape {per_group} at group {layout.group}, got {scale.shape}")
    if (zero is None) != (layout.zero_kind == "none"):
        got = "missing" if zero is None else "given"
        raise ValueError(f"affine_matmul: zero_kind={layout.zero_kind!r} does not go with zero {got}")
    if zero is None:
        return
    if layout.zero_kind == "real":
        if not jnp.issubdtype(zero.dtype, jnp.floating):
            raise TypeError(f"affine_matmul: a real zero must be floating point, got {zero.dtype}")
        if zero.shape != per_group:
            raise ValueError(f"affine_matmul: zero must have shape {per_group}, got {zero.shape}")
        return
    packed = (layout.groups, layout.zero_packing.tiles * layout.zero_packing.words)
    if zero.dtype != jnp.uint32 or zero.shape != packed:
        raise ValueError(
            f"affine_matmul: an integer zero must be uint32 of shape {packed}, {layout.bits} bits packed along the "
            f"outputs, got {zero.dtype} of shape {zero.shape}"
        )
