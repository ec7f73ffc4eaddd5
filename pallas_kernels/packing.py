"""How codes of 1 to 8 bits stand in 32-bit words, as a kernel must know it.

A code is cut into planes whose widths are powers of two, widest first (3 = 2 + 1). Rows are packed in tiles; in a tile
the plane of width ``p`` takes ``tile*p/32`` words, and field ``j`` of word ``k`` holds row ``k + j*tile*p/32``. A tile
has ``tile*bits/32`` words. One shift of the words of the widest plane so gives ``run`` consecutive rows.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Packing:
    """Layout of ``rows`` codes of ``bits`` bits in tiles of ``tile`` rows."""

    bits: int
    tile: int
    rows: int

    @property
    def planes(self) -> tuple[tuple[int, int, int], ...]:
        """``(width, offset of the field in the code, first word in the tile)`` of each plane, widest first."""
        found, offset, word = [], 0, 0
        for width in (8, 4, 2, 1):
            if self.bits & width:
                found.append((width, offset, word))
                offset += width
                word += self.tile * width // 32
        return tuple(found)

    @property
    def words(self) -> int:
        """Words of a tile."""
        return self.tile * self.bits // 32

    @property
    def tiles(self) -> int:
        """Tiles of the matrix; the last is padded."""
        return -(-self.rows // self.tile)

    @property
    def fields(self) -> int:
        """Fields of a word of the widest plane."""
        return 32 // self.planes[0][0]

    @property
    def run(self) -> int:
        """Rows that one field of the widest plane holds in a tile."""
        return self.tile // self.fields

    def check(self, name: str) -> None:
        """Raises ValueError naming ``name`` for a width or a tile that no kernel reads."""
        if self.bits not in range(1, 9):
            raise ValueError(f"{name}: bits must be in 1..8, got {self.bits}")
        if self.tile not in (32, 64, 128, 256):
            raise ValueError(f"{name}: tile must be 32, 64, 128 or 256, got {self.tile}")
