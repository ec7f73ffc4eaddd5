"""What a compressor of vectors is, and how its messages become bytes on the wire.

A compressor is a frozen, hashable value with two pure functions: ``encode(x, key)`` gives a message, a pytree of packed
arrays whose shapes depend on the length of ``x`` alone, and ``decode(message, d, key)`` gives the vector back. Both
sides know the key, so what is drawn from it, such as the places a random mask keeps, is never sent.

Two constants say how good one is. An unbiased Q has ``E Q(x) = x`` and ``E |Q(x)|^2 <= q |x|^2``; a contractive C has
``E |C(x) - x|^2 <= (1 - 1 / delta) |x|^2``.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@runtime_checkable
class Compressor(Protocol):
    """A way to write a vector in fewer bytes."""

    def encode(self, x: jax.Array, key: jax.Array) -> Any:
        """``x float32 [d]`` to a message."""
        ...

    def decode(self, message: Any, d: int, key: jax.Array) -> jax.Array:
        """A message to ``float32 [d]``, given the key it was made with."""
        ...

    def unbiased(self, d: int) -> float | None:
        """The constant q for vectors of length d; None where the compressor is biased."""
        ...

    def contractive(self, d: int) -> float | None:
        """The constant delta for vectors of length d; None where it is not contractive."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Sends the vector as it is; every other one is compared with it."""

    def encode(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """The vector."""
        del key
        return x

    def decode(self, message: jax.Array, d: int, key: jax.Array) -> jax.Array:
        """The vector."""
        del d, key
        return message

    def unbiased(self, d: int) -> float | None:
        """1."""
        return 1.0

    def contractive(self, d: int) -> float | None:
        """1."""
        return 1.0


def message_like(compressor: Compressor, d: int, dtype: DTypeLike = jnp.float32) -> Any:
    """Shapes and dtypes of the message for a vector of length d."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(compressor.encode, jax.ShapeDtypeStruct((d,), dtype), key)


def message_bytes(compressor: Compressor, d: int) -> int:
    """Bytes of the message for a vector of length d: all its arrays, nothing left out."""
    return tree_bytes(message_like(compressor, d))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of its shapes."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def to_bytes(tree: Any) -> jax.Array:
    """All arrays of a tree as one uint8 ``[n]``, so that one collective carries them whatever their dtypes.

    XLA widens what its collectives cannot carry (4-bit integers to bytes, bfloat16 sums to float32); bytes stay bytes.
    """
    flat = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
    parts = [x if x.dtype == jnp.uint8 else jax.lax.bitcast_convert_type(x, jnp.uint8).reshape(-1) for x in flat]
    return jnp.concatenate(parts) if parts else jnp.zeros((0,), jnp.uint8)


def from_bytes(buffer: jax.Array, like: Any) -> Any:
    """Inverse of `to_bytes`.

    Args:
      buffer: uint8 ``[n]``.
      like: tree of shapes and dtypes.

    Raises:
      ValueError: the buffer has another number of bytes than the tree.
    """
    if buffer.shape != (tree_bytes(like),):
        raise ValueError(f"buffer has shape {buffer.shape}, the message needs {(tree_bytes(like),)}")
    leaves, structure = jax.tree.flatten(like)
    out, at = [], 0
    for leaf in leaves:
        dtype, count = jnp.dtype(leaf.dtype), math.prod(leaf.shape)
        part = jax.lax.slice_in_dim(buffer, at, at + count * dtype.itemsize)
        at += count * dtype.itemsize
        if dtype.itemsize > 1:
            part = jax.lax.bitcast_convert_type(part.reshape(count, dtype.itemsize), dtype)
        out.append(part.reshape(leaf.shape))
    return jax.tree.unflatten(structure, out)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Runs of a vector, each with a compressor of its own, in one message.

    Attributes:
      runs: triples of compressor, length and count: ``count`` pieces of ``length`` entries follow each other.
    """

    runs: tuple[tuple[Any, int, int], ...]

    def encode(self, x: jax.Array, key: jax.Array) -> tuple[Any, ...]:
        """A message for every run, its pieces stacked."""
        out, at = [], 0
        for i, (compressor, length, count) in enumerate(self.runs):
            pieces = x[at : at + length * count].reshape(count, length)
            at += length * count
            out.append(jax.vmap(compressor.encode)(pieces, jax.random.split(jax.random.fold_in(key, i), count)))
        return tuple(out)

    def decode(self, message: tuple[Any, ...], d: int, key: jax.Array) -> jax.Array:
        """``[d]``."""
        del d
        out = []
        for i, (part, (compressor, length, count)) in enumerate(zip(message, self.runs, strict=True)):
            keys = jax.random.split(jax.random.fold_in(key, i), count)
            decode = functools.partial(_decode_piece, compressor, length)
            out.append(jax.vmap(decode)(part, keys).reshape(-1))
        return jnp.concatenate(out)

    def unbiased(self, d: int) -> float | None:
        """The largest of the runs' constants; None if one has none."""
        del d
        found = [compressor.unbiased(length) for compressor, length, _ in self.runs]
        return None if None in found else max(found)

    def contractive(self, d: int) -> float | None:
        """The largest of the runs' constants; None if one has none."""
        del d
        found = [compressor.contractive(length) for compressor, length, _ in self.runs]
        return None if None in found else max(found)


def _decode_piece(compressor: Compressor, length: int, message: Any, key: jax.Array) -> jax.Array:
    return compressor.decode(message, length, key)


def checked_density(owner: str, density: float) -> None:
    """Refuses a share outside (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"{owner}.density must be in (0, 1], got {density}")
