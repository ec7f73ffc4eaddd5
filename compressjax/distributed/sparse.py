"""Compressors that send some entries of a vector: at random, the largest, or the largest of every chunk."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.distributed.compressor import checked_density
from compressjax.ops.on_gpu import kernel_or_formula

_SHORT = 1 << 16  # places below this fit two bytes
_MOST_CHUNK = 8192  # entries that one program of the GPU kernel holds


class Sparse(NamedTuple):
    """Entries and their places.

    Attributes:
      values: float32 ``[k]`` or ``[chunks, k]``.
      places: uint16 or uint32, of the values' shape, counted from the start of the vector or of the chunk.
    """

    values: jax.Array
    places: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandK:
    """A uniformly random set of entries, scaled by the inverse of its share; unbiased with ``q = d / k``.

    The set follows from the key, so values alone are sent.

    Attributes:
      density: share k / d of the entries, in (0, 1]; at least one block is sent.
      block: entries that are kept or dropped together; reading runs of memory is cheaper, and q is the same.
    """

    density: float
    block: int = 1

    def __post_init__(self):
        checked_density("RandK", self.density)
        if self.block < 1:
            raise ValueError(f"RandK.block must be at least 1, got {self.block}")

    def _blocks(self, d: int) -> tuple[int, int]:
        total = -(-d // self.block)
        return total, max(1, min(total, round(self.density * total)))

    def encode(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Values ``[k]``, already scaled."""
        total, kept = self._blocks(x.shape[0])
        rows = jnp.pad(x, (0, total * self.block - x.shape[0])).reshape(total, self.block)
        return (rows[_subset(key, total, kept)] * (total / kept)).reshape(-1)

    def decode(self, message: jax.Array, d: int, key: jax.Array) -> jax.Array:
        """``[d]``, zero where nothing was sent."""
        total, kept = self._blocks(d)
        rows = jnp.zeros((total, self.block), message.dtype)
        return rows.at[_subset(key, total, kept)].set(message.reshape(kept, self.block)).reshape(-1)[:d]

    def unbiased(self, d: int) -> float | None:
        """``d / k``."""
        total, kept = self._blocks(d)
        return total / kept

    def contractive(self, d: int) -> float | None:
        """None: scaled for its mean, it may lie farther from x than zero does."""
        return 1.0 if self.unbiased(d) == 1.0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """The entries of largest magnitude with their places; contractive with ``delta = d / k``.

    Attributes:
      density: share k / d, in (0, 1]; ignored where ``k`` is given. At least one entry is sent.
      k: number of entries.
    """

    density: float = 0.01
    k: int | None = None

    def __post_init__(self):
        checked_density("TopK", self.density)
        if self.k is not None and self.k < 1:
            raise ValueError(f"TopK.k must be at least 1, got {self.k}")

    def count(self, d: int) -> int:
        """Number of entries sent of a vector of length d."""
        if self.k is not None and self.k > d:
            raise ValueError(f"TopK.k={self.k} exceeds the length {d}")
        return self.k if self.k is not None else max(1, min(d, round(self.density * d)))

    def encode(self, x: jax.Array, key: jax.Array) -> Sparse:
        """Values and places ``[k]``; two bytes a place up to 65,536 entries, four beyond."""
        del key
        _, places = jax.lax.top_k(jnp.abs(x), self.count(x.shape[0]))
        return Sparse(x[places], places.astype(jnp.uint16 if x.shape[0] <= _SHORT else jnp.uint32))

    def decode(self, message: Sparse, d: int, key: jax.Array) -> jax.Array:
        """``[d]``, zero where nothing was sent."""
        del key
        return jnp.zeros((d,), message.values.dtype).at[message.places.astype(jnp.int32)].set(message.values)

    def unbiased(self, d: int) -> float | None:
        """None, but at full density."""
        return 1.0 if self.count(d) == d else None

    def contractive(self, d: int) -> float | None:
        """``d / k``."""
        return d / self.count(d)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockTopK:
    """The largest entries of every chunk: no sort of the whole vector, and places of two bytes at any length.

    Attributes:
      density: share of every chunk, in (0, 1]; at least one entry of each.
      chunk: entries in a chunk, at most 65,536. A shorter vector is one chunk; a last chunk is filled with zeros.
    """

    density: float = 0.01
    chunk: int = 4096

    def __post_init__(self):
        checked_density("BlockTopK", self.density)
        if not 1 <= self.chunk <= _SHORT:
            raise ValueError(f"BlockTopK.chunk must be in 1..{_SHORT}, got {self.chunk}")

    def _layout(self, d: int) -> tuple[int, int, int]:
        width = min(self.chunk, d)
        return -(-d // width), width, max(1, round(self.density * width))

    def encode(self, x: jax.Array, key: jax.Array) -> Sparse:
        """Values and places ``[chunks, k]``, largest first; on a GPU the same entries in ascending places."""
        del key
        width = self._layout(x.shape[0])[1]
        refusal = None if width <= _MOST_CHUNK else f"chunks have {width} entries"
        return kernel_or_formula(self._encode_kernel, self._encode_formula, refusal, x)

    def _encode_kernel(self, x: jax.Array) -> Sparse:
        from pallas_kernels.topk_pack import TopKLayout, topk_pack

        _, width, k = self._layout(x.shape[0])
        found = topk_pack(x, TopKLayout(chunk=width, k=k), implementation="triton")
        return Sparse(found.values, found.places)

    def _encode_formula(self, x: jax.Array) -> Sparse:
        chunks, width, k = self._layout(x.shape[0])
        rows = jnp.pad(x, (0, chunks * width - x.shape[0])).reshape(chunks, width)
        _, places = jax.lax.top_k(jnp.abs(rows), k)
        return Sparse(jnp.take_along_axis(rows, places, axis=1), places.astype(jnp.uint16))

    def decode(self, message: Sparse, d: int, key: jax.Array) -> jax.Array:
        """``[d]``, zero where nothing was sent."""
        del key
        chunks, width, _ = self._layout(d)
        at = jnp.arange(chunks)[:, None] * width + message.places.astype(jnp.int32)
        return jnp.zeros((chunks * width,), message.values.dtype).at[at].set(message.values)[:d]

    def unbiased(self, d: int) -> float | None:
        """None, but at full density."""
        _, width, k = self._layout(d)
        return 1.0 if k == width else None

    def contractive(self, d: int) -> float | None:
        """``chunk / k``: every chunk is contracted by it."""
        _, width, k = self._layout(d)
        return width / k


def _subset(key: jax.Array, total: int, kept: int) -> jax.Array:
    return jax.random.permutation(key, total)[:kept] if kept < total else jnp.arange(total)
