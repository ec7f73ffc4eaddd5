"""Where the values, words and scales of one program lie.

A word of ``F`` fields holds the values of one lane in ``F`` places. The lanes of a program are an array, and field
``j`` of all its words is one load of that shape. Fields are gone through section by section: a section is the fewest
fields that hold whole blocks.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.quantize_pack.layout import PackLayout


def blocks_of_lanes(shape: tuple[int, ...], layout: PackLayout, values: int) -> tuple[int, int]:
    """Width of a program, in blocks ("flat") or columns, and number of programs, for about ``values`` values each."""
    if layout.along == "flat":
        (_,), (blocks,) = layout.shapes(shape)
        width = max(1, values // layout.block)
        return width, math.ceil(blocks / width)
    *lead, rows, cols = shape
    width = max(values // layout.tile, layout.block if layout.along == "cols" else 1)
    width = min(width, 1 << (cols - 1).bit_length())
    return width, math.prod(lead) * (rows // layout.tile) * math.ceil(cols / width)


@dataclasses.dataclass(frozen=True)
class FlatLanes:
    """Lanes ``[width, words of a block]`` of consecutive blocks of a vector of ``size`` values."""

    layout: PackLayout
    size: int
    width: int

    @property
    def tall(self) -> int:
        """Words of a block."""
        return self.layout.block // self.layout.packing.fields

    @property
    def sections(self) -> tuple[range, ...]:
        """Fields of each section."""
        return (range(self.layout.packing.fields),)

    def _block(self):
        return triton.program() * jnp.int32(self.width) + triton.iota(self.width)

    def _places(self, field: int):
        run = jnp.int32(self.layout.packing.run)
        lane = triton.iota(self.tall)
        within = lax.div(lane, run) * jnp.int32(self.layout.tile) + jnp.int32(field) * run + lax.rem(lane, run)
        return self._block()[:, None] * jnp.int32(self.layout.block) + within[None, :]

    def _inside(self, places):
        return places < jnp.int32(self.size) if self.size % (self.width * self.layout.block) else None

    def load(self, ref: Any, field: int) -> jax.Array:
        """Values of a field, float32; beyond the end the last value, or 0 for norms."""
        places = self._places(field)
        inside = self._inside(places)
        found = triton.load(ref, places, mask=inside).astype(jnp.float32)
        if inside is None or self.layout.kind == "norm":
            return found
        return jnp.where(inside, found, triton.load(ref, jnp.int32(self.size - 1)).astype(jnp.float32))

    def store(self, ref: Any, value: jax.Array, field: int) -> None:
        """Writes the values of a field."""
        places = self._places(field)
        triton.store(ref, value, places, mask=self._inside(places))

    def words(self) -> tuple[tuple[jax.Array, ...], jax.Array | None, jax.Array]:
        """Indices of the words, which exist, and their numbers."""
        number = self._block()[:, None] * jnp.int32(self.tall) + triton.iota(self.tall)[None, :]
        exists = None if self._whole else number < jnp.int32(self._blocks * self.tall)
        return (number,), exists, number

    @property
    def _blocks(self):
        return math.ceil(self.size / self.layout.block)

    @property
    def _whole(self):
        return self._blocks % self.width == 0

    def scales(self, section: int) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """Indices of the scales of a section and which exist."""
        del section
        block = self._block()
        return (block,), None if self._whole else block < jnp.int32(self._blocks)

    def split(self, a: jax.Array) -> tuple[jax.Array, int]:
        """Lanes with an axis along blocks, and which it is."""
        return a, 1


@dataclasses.dataclass(frozen=True)
class MatrixLanes:
    """Lanes ``[run, width]``: the words of one tile of rows, ``width`` columns of matrices ``[lead, rows, cols]``."""

    layout: PackLayout
    rows: int
    cols: int
    width: int

    @property
    def sections(self) -> tuple[range, ...]:
        """Fields of each section."""
        fields, run = self.layout.packing.fields, self.layout.packing.run
        each = max(1, self.layout.block // run) if self.layout.along == "rows" else 1
        return tuple(range(first, first + each) for first in range(0, fields, each))

    def _program(self):
        extents = (1, self.rows // self.layout.tile, math.ceil(self.cols / self.width))
        _, tile, at = triton.split_program(extents)
        lead = lax.div(triton.program(), jnp.int32(extents[1] * extents[2]))
        return lead, tile, at * jnp.int32(self.width)

    def _cols(self, first):
        return first + triton.iota(self.width)

    def _inside(self, col):
        return None if self.cols % self.width == 0 else col < jnp.int32(self.cols)

    def _mask(self, col):
        inside = self._inside(col)
        return None if inside is None else inside[None, :]

    def _where(self, field):
        lead, tile, start = self._program()
        col = self._cols(start)
        first = tile * jnp.int32(self.layout.tile) + jnp.int32(field * self.layout.packing.run)
        row = first + triton.iota(self.layout.packing.run)
        return (lead, row[:, None], col[None, :]), self._mask(col)

    def load(self, ref: Any, field: int) -> jax.Array:
        """Values of a field, float32."""
        where, mask = self._where(field)
        return triton.load(ref, *where, mask=mask).astype(jnp.float32)

    def store(self, ref: Any, value: jax.Array, field: int) -> None:
        """Writes the values of a field."""
        where, mask = self._where(field)
        triton.store(ref, value, *where, mask=mask)

    def words(self) -> tuple[tuple[jax.Array, ...], jax.Array | None, jax.Array]:
        """Indices of the words, which exist, and their numbers."""
        lead, tile, start = self._program()
        col = self._cols(start)
        row = tile * jnp.int32(self.layout.packing.words) + triton.iota(self.layout.packing.words)
        tall = self.rows * self.layout.bits // 32
        number = (lead * jnp.int32(tall) + row)[:, None] * jnp.int32(self.cols) + col[None, :]
        return (lead, row[:, None], col[None, :]), self._mask(col), number

    def scales(self, section: int) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """Indices of the scales of a section and which exist."""
        lead, tile, start = self._program()
        col = self._cols(start)
        run, block = self.layout.packing.run, self.layout.block
        if self.layout.along == "cols":
            row = tile * jnp.int32(self.layout.tile) + jnp.int32(section * run) + triton.iota(run)
            at = lax.div(start, jnp.int32(block)) + triton.iota(self.width // block)
            inside = None if self.cols % self.width == 0 else (at < jnp.int32(self.cols // block))[None, :]
            return (lead, row[:, None], at[None, :]), inside
        each = max(1, run // block)
        first = tile * jnp.int32(self.layout.tile // block) + jnp.int32(section * each)
        if block >= run:
            return (lead, first, col), self._inside(col)
        return (lead, (first + triton.iota(each))[:, None], col[None, :]), self._mask(col)

    def split(self, a: jax.Array) -> tuple[jax.Array, int]:
        """Lanes with an axis along blocks, and which it is."""
        run, block = self.layout.packing.run, self.layout.block
        if self.layout.along == "cols":
            return a.reshape(run, self.width // block, block), 2
        return (a, 0) if block >= run else (a.reshape(run // block, block, self.width), 1)
