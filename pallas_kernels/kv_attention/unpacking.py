"""Reading packed keys or values inside a kernel: the words of one tile, then some of its tokens after the others."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.kv_attention.layout import KVLayout, Side
from pallas_kernels.packing import Packing


def power_of_two(count: int) -> int:
    """The least power of two from ``count``."""
    return 1 << (count - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Columns:
    """Channels of a head as a kernel has them: padded to a power of two, group by group where groups lie in a token.

    Attributes:
      side: how the head is rounded.
    """

    side: Side

    @property
    def parts(self) -> int:
        """Groups of a token, or 1 where groups run along tokens."""
        return self.side.width // self.side.group if self.side.axis == "token" else 1

    @property
    def part(self) -> int:
        """Channels of each, padded."""
        return max(power_of_two(self.side.width // self.parts), 16 if self.parts == 1 else 1)

    @property
    def count(self) -> int:
        """Columns in all, padded."""
        return max(16, power_of_two(self.parts) * self.part)

    def channels(self) -> tuple[jax.Array, jax.Array | None]:
        """Channel of every column, int32 ``[count]``, and which exist; None when all do."""
        column = triton.iota(self.count)
        if self.count == self.side.width:
            return column, None
        each = self.side.width // self.parts
        part, within = column // jnp.int32(self.part), column % jnp.int32(self.part)
        exists = (part < jnp.int32(self.parts)) & (within < jnp.int32(each))
        # A place beyond the end for the others: the interpreter writes masked entries back where they point.
        return jnp.where(exists, part * jnp.int32(each) + within, jnp.int32(self.side.width)), exists


def fields_of(words: list[jax.Array], packing: Packing, rows: int, nth: Any) -> jax.Array:
    """Codes of the ``nth`` run of ``rows`` tokens of a tile, uint32 ``[rows, columns]``.

    Args:
      words: of each plane of the tile, ``[tokens of a field, columns]``.
      packing: of the tile.
      rows: whole fields of every plane.
      nth: number of the run.
    """
    code = None
    for (width, offset, _), word in zip(packing.planes, words, strict=True):
        fields = rows // word.shape[0]
        field = jnp.asarray(nth * fields, jnp.int32) + triton.iota(fields)
        shift = (field * jnp.int32(width)).astype(jnp.uint32)[:, None, None]
        part = (word[None] >> shift) & jnp.uint32(2**width - 1)
        part = part.reshape(rows, word.shape[1])
        part = part << jnp.uint32(offset) if offset else part
        code = part if code is None else code | part
    assert code is not None  # every width has a plane
    return code


@dataclasses.dataclass(frozen=True)
class Reader:
    """Keys or values of one head.

    Attributes:
      side, layout: how they are rounded and packed.
      rows: tokens unpacked together.
      codes, scale, low: references, see :class:`Codes`, with batch and heads as one axis.
      pair: number of the head among those of all rows.
    """

    side: Side
    layout: KVLayout
    rows: int
    codes: Any
    scale: Any
    low: Any
    pair: jax.Array

    @property
    def columns(self) -> Columns:
        """Its channels."""
        return Columns(self.side)

    def words(self, block: jax.Array, tile: jax.Array) -> list[jax.Array]:
        """Words of each plane of a tile, uint32 ``[tokens of a field, columns]``."""
        channel, exists = self.columns.channels()
        packing = self.layout.packing(self.side)
        mask = None if exists is None else exists[None, :]
        found = []
        for width, _, word in packing.planes:
            at = tile * jnp.int32(packing.words) + jnp.int32(word) + triton.iota(packing.tile * width // 32)
            found.append(triton.load(self.codes, block, self.pair, at[:, None], channel[None, :], mask=mask))
        return found

    def unpacked(self, words: list[jax.Array], nth: Any) -> jax.Array:
        """Codes of the ``nth`` tokens of the tile, uint32 ``[rows, columns]``."""
        return fields_of(words, self.layout.packing(self.side), self.rows, nth)

    def values(self, words: list[jax.Array], block: jax.Array, tile: jax.Array, nth: Any) -> jax.Array:
        """Keys or values of the ``nth`` tokens of a tile, float32 ``[rows, columns]``."""
        first = tile * jnp.int32(self.layout.tile) + jnp.asarray(nth * self.rows, jnp.int32)
        shape, where, mask = self._groups(first)

        def load(ref):
            return triton.load(ref, block, self.pair, *where, mask=mask).astype(jnp.float32)

        code = triton.exact_float(self.unpacked(words, nth)).reshape(shape)
        if self.low is None:
            value = load(self.scale) * (code - triton.exact_zero(float(2 ** (self.side.bits - 1))))
        else:
            value = load(self.low) + load(self.scale) * (code - triton.exact_zero(0.0))
        return value.reshape(self.rows, self.columns.count)

    def _groups(self, first: jax.Array) -> tuple[tuple[int, ...], tuple[Any, ...], jax.Array | None]:
        """For ``rows`` tokens from ``first``: a shape, and where the scales lie that broadcast against it."""
        columns, rows, group = self.columns, self.rows, self.side.group
        token = first + triton.iota(rows)
        if self.side.axis == "token":
            if columns.parts == 1:
                return (rows, columns.count), (token[:, None], jnp.zeros((1, 1), jnp.int32)), None
            many = columns.count // columns.part
            nth = triton.iota(many)[None, :, None]
            mask = None if many == columns.parts else nth < jnp.int32(columns.parts)
            return (rows, many, columns.part), (token[:, None, None], nth), mask
        channel, exists = columns.channels()
        mask = None if exists is None else exists[None, :]
        if group % rows == 0:
            at = jnp.reshape(first // jnp.int32(group), (1, 1))
            return (rows, columns.count), (at, channel[None, :]), mask
        if rows % group == 0:
            at = first // jnp.int32(group) + triton.iota(rows // group)
            mask = None if mask is None else mask[:, None]
            return (rows // group, group, columns.count), (at[:, None, None], channel[None, None, :]), mask
        return (rows, columns.count), ((token // jnp.int32(group))[:, None], channel[None, :]), mask
