"""What is fixed about a choice of entries, and the check that arrays fit."""

import dataclasses
from typing import NamedTuple

import jax

from pallas_kernels.quantize_pack.layout import FLOATS

MOST_CHUNK = 8192
_OP = "topk_pack"


class Largest(NamedTuple):
    """Entries of each chunk in ascending places.

    Attributes:
      values: of the dtype of the vector, ``[chunks, k]``.
      places: uint16 ``[chunks, k]``, counted from the start of the chunk.
      residual: the vector with those entries 0; None unless asked for.
    """

    values: jax.Array
    places: jax.Array
    residual: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKLayout:
    """How many entries are kept of how many.

    Attributes:
      chunk: entries of a chunk, 1 to 8192; a last chunk is filled with zeros, which may be kept.
      k: entries kept of each: those of largest magnitude, of equal ones those that come first.
      residual: whether what is left is written too.
    """

    chunk: int
    k: int
    residual: bool = False

    def __post_init__(self):
        if not 1 <= self.chunk <= MOST_CHUNK:
            raise ValueError(f"{_OP}: chunk must be in 1..{MOST_CHUNK}, got {self.chunk}")
        if not 1 <= self.k <= self.chunk:
            raise ValueError(f"{_OP}: k must be in 1..{self.chunk}, got {self.k}")

    def chunks(self, size: int) -> int:
        """Chunks of a vector."""
        return -(-size // self.chunk)


def check_vector(x: jax.Array) -> None:
    """Raises TypeError or ValueError for what is no vector of floats."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim != 1 or x.size >= 2**31:
        raise ValueError(f"{_OP}: x must be a vector of fewer than 2**31 entries, got shape {x.shape}")
