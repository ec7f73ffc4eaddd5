"""Reading packed codes inside a kernel: the words of a few tiles, then one run of rows after the other."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.packing import Packing


@dataclasses.dataclass(frozen=True)
class Chunk:
    """``count`` consecutive tiles that a kernel handles in one step of its loop; their fields hold ``height`` rows."""

    packing: Packing
    count: int

    @property
    def height(self) -> int:
        """Rows of one field in all tiles of the chunk: the depth of one product."""
        return self.packing.run * self.count

    @property
    def rows(self) -> int:
        """Rows of the chunk."""
        return self.packing.tile * self.count

    @property
    def total(self) -> int:
        """Chunks of the matrix."""
        return -(-self.packing.tiles // self.count)

    @property
    def ragged(self) -> bool:
        """Whether some rows of the last chunk lie beyond the matrix."""
        return self.total * self.rows != self.packing.rows

    def _places(self, index):
        """Tile, and row within the run of that tile, of each of ``height`` rows."""
        row = triton.iota(self.height)
        if self.count == 1:
            return index, row
        run = jnp.int32(self.packing.run)
        return index * jnp.int32(self.count) + row // run, row % run

    def load_words(
        self, ref: Any, index: jax.Array, cols: jax.Array, inside: jax.Array | None, lead: tuple[jax.Array, ...] = ()
    ) -> list[jax.Array]:
        """Words of each plane, uint32 ``[height, len(cols)]``; narrow planes repeat so that their rows line up.

        Args:
          ref: the packed matrix, uint32 ``[words, cols]``.
          index: number of the chunk.
          cols: columns to read, int32.
          inside: which of them exist, or None when all do.
          lead: which of several packed matrices, where ``ref`` leads with such axes.
        """
        tile, within = self._places(index)
        mask = None if inside is None else inside[None, :]
        if self.total * self.count != self.packing.tiles:
            exists = (jnp.broadcast_to(tile, within.shape) < jnp.int32(self.packing.tiles))[:, None]
            mask = exists if mask is None else exists & mask
        found = []
        for width, _, word in self.packing.planes:
            tall = self.packing.tile * width // 32
            at = within if tall == self.packing.run else within % jnp.int32(tall)
            rows = tile * jnp.int32(self.packing.words) + jnp.int32(word) + at
            found.append(triton.load(ref, *lead, rows[:, None], cols[None, :], mask=mask))
        return found

    def codes(self, words: list[jax.Array], field: Any) -> jax.Array:
        """Codes of one field, uint32 ``[height, cols]``, from what :meth:`load_words` gave."""
        code = None
        for (width, offset, _), word in zip(self.packing.planes, words, strict=True):
            tall = self.packing.tile * width // 32
            if tall == self.packing.run:
                shift = jnp.asarray(field * width, jnp.uint32)
            else:  # a narrower plane has its rows in several fields
                many = self.packing.run // tall
                within = triton.iota(self.height) % jnp.int32(self.packing.run)
                nth = jnp.asarray(field * many, jnp.int32) + within // jnp.int32(tall)
                shift = (nth * jnp.int32(width)).astype(jnp.uint32)[:, None]
            part = (word >> shift) & jnp.uint32(2**width - 1)
            part = part << jnp.uint32(offset) if offset else part
            code = part if code is None else code | part
        assert code is not None  # every width has a plane
        return code

    def row_numbers(self, index: jax.Array, field: Any) -> jax.Array:
        """Rows of the matrix that a field holds, int32 ``[height]``."""
        tile, within = self._places(index)
        return tile * jnp.int32(self.packing.tile) + jnp.asarray(field * self.packing.run, jnp.int32) + within
