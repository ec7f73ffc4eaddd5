"""What is fixed about a matrix of packed indices, and the check that arrays fit it."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing

ACTIVATIONS = (jnp.bfloat16, jnp.float16, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookLayout:
    """A matrix ``[rows, cols]`` with ``w[i, o] = levels[i // group, code[i, o], o]``.

    Attributes:
      levels: entries of a table, 2 to 256; codes take as many bits as number them.
      group: inputs that share a table; the last group may be short.
      tile: rows packed together: 32, 64, 128 or 256.
      rows, cols: inputs and outputs.
    """

    levels: int
    group: int
    tile: int
    rows: int
    cols: int

    def __post_init__(self):
        if not 2 <= self.levels <= 256:
            raise ValueError(f"codebook_matmul: levels must be in 2..256, got {self.levels}")
        self.packing.check("codebook_matmul")
        for name in ("group", "rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"codebook_matmul: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def packing(self) -> Packing:
        """How the codes are packed along the inputs."""
        return Packing((self.levels - 1).bit_length(), self.tile, self.rows)

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return -(-self.rows // self.group)


def check_arrays(x: jax.Array, codes: jax.Array, levels: jax.Array, layout: CodebookLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in ACTIVATIONS:
        raise TypeError(f"codebook_matmul: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"codebook_matmul: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    words = (layout.packing.tiles * layout.packing.words, layout.cols)
    if codes.dtype != jnp.uint32 or codes.shape != words:
        raise ValueError(
            f"codebook_matmul: codes must be uint32 of shape {words} for {layout.packing.bits} bits and a matrix "
            f"{(layout.rows, layout.cols)}, got {codes.dtype} of shape {codes.shape}"
        )
    tables = (layout.groups, layout.levels, layout.cols)
    if not jnp.issubdtype(levels.dtype, jnp.floating):
        raise TypeError(f"codebook_matmul: levels must be floating point, got {levels.dtype}")
    if levels.shape != tables:
        raise ValueError(f"codebook_matmul: levels must have shape {tables}, got {levels.shape}")
