"""Matrix rows laid out by block and kind, as charts need them."""

import dataclasses
from collections.abc import Iterable

from compressjax.streaming import MatrixRow


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows by place.

    Attributes:
      blocks: block numbers in order.
      kinds: matrices of a block in order of first appearance, "attn/q".
      cells: (block, kind) -> row; a matrix that was left alone has none.
    """

    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    cells: dict[tuple[int, str], MatrixRow]

    def of_block(self, block: int) -> list[MatrixRow]:
        """Rows of one block."""
        return [self.cells[block, kind] for kind in self.kinds if (block, kind) in self.cells]


def lay_out(rows: Iterable[MatrixRow]) -> Grid:
    """Sorts rows whose path reads "blocks/<number>/<kind>/kernel" into a grid; others are left out."""
    cells: dict[tuple[int, str], MatrixRow] = {}
    for row in rows:
        head, _, rest = row.path.partition("/")
        number, _, inside = rest.partition("/")
        if head == "blocks" and number.isdigit() and inside:
            cells[int(number), inside.rpartition("/")[0] or inside] = row
    blocks = tuple(sorted({block for block, _ in cells}))
    return Grid(blocks, tuple(dict.fromkeys(kind for _, kind in cells)), cells)
