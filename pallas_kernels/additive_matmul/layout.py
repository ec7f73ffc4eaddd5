"""What is fixed about a matrix of additive codes, and the check that arrays fit it.

This is the form of AQLM (Egiazarian et al., 2024, arXiv 2401.06118) with output groups of one: its codes
``[outputs, groups, books]`` with the groups first, its codebooks ``[books, entries, 1, group]`` without the 1, its
scales ``[outputs, 1, 1, 1]`` as a row. A code stands in a whole byte or two, so nothing is padded.
"""

import dataclasses

import jax
import jax.numpy as jnp

ACTIVATIONS = (jnp.bfloat16, jnp.float16, jnp.float32)
GROUPS = (4, 8, 16)
BOOKS = (1, 2, 4)
_OP = "additive_matmul"
_MOST_BITS = 32  # the codes of a group are read as one word


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveLayout:
    """A matrix ``[rows, cols]`` with ``w[i, o] = scale[o] * sum_m books[m, codes[i // group, o, m], i % group]``.

    Attributes:
      books: codebooks that every group takes one vector of: 1, 2 or 4.
      entries: vectors of a codebook, 2 to 65536; codes are bytes up to 256 and 16-bit words beyond.
      group: consecutive inputs that a vector holds: 4, 8 or 16.
      rows, cols: inputs and outputs.
    """

    books: int
    entries: int
    group: int
    rows: int
    cols: int

    def __post_init__(self):
        if self.books not in BOOKS:
            raise ValueError(f"{_OP}: books must be one of {BOOKS}, got {self.books}")
        if not 2 <= self.entries <= 65536:
            raise ValueError(f"{_OP}: entries must be in 2..65536, got {self.entries}")
        if self.books * self.bits > _MOST_BITS:
            raise ValueError(
                f"{_OP}: the codes of a group must fill at most {_MOST_BITS} bits, got books={self.books} of "
                f"{self.bits} bits for entries={self.entries}"
            )
        if self.group not in GROUPS:
            raise ValueError(f"{_OP}: group must be one of {GROUPS}, got {self.group}")
        for name in ("rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_OP}: {name} must be at least 1, got {getattr(self, name)}")
        if self.rows % self.group:
            raise ValueError(f"{_OP}: group={self.group} must divide the {self.rows} rows")

    @property
    def bits(self) -> int:
        """Bits in which a code stands."""
        return 8 if self.entries <= 256 else 16

    @property
    def code_dtype(self) -> jnp.dtype:
        """Type of the codes."""
        return jnp.dtype(jnp.uint8 if self.bits == 8 else jnp.uint16)

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return self.rows // self.group

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Shape of the codes."""
        return (self.groups, self.cols, self.books)

    @property
    def books_shape(self) -> tuple[int, int, int]:
        """Shape of the codebooks."""
        return (self.books, self.entries, self.group)


def check_arrays(
    x: jax.Array, codes: jax.Array, codebooks: jax.Array, scale: jax.Array, layout: AdditiveLayout
) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in ACTIVATIONS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != layout.rows:
        raise ValueError(f"{_OP}: x must end in the {layout.rows} inputs of the matrix, got shape {x.shape}")
    if codes.dtype != layout.code_dtype or codes.shape != layout.codes_shape:
        raise ValueError(
            f"{_OP}: codes must be {layout.code_dtype} of shape {layout.codes_shape} for entries={layout.entries} and "
            f"a matrix {(layout.rows, layout.cols)}, got {codes.dtype} of shape {codes.shape}"
        )
    for name, array, shape in (("codebooks", codebooks, layout.books_shape), ("scale", scale, (layout.cols,))):
        if array.dtype not in ACTIVATIONS:
            raise TypeError(f"{_OP}: {name} must be bfloat16, float16 or float32, got {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{_OP}: {name} must have shape {shape}, got {array.shape}")
