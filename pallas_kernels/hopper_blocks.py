"""Blocks of products on Hopper: limits that kernels share, and the rule that picks a size."""

from collections.abc import Iterable

PREFILL_ROWS = 128
"""Rows of activations from which these kernels are for."""
OUTPUTS = 64
"""Outputs of one warpgroup: the fixed side of a ``wgmma``."""
SHARED = 224 * 1024
"""Bytes of the 227 KB of shared memory a block may have; barriers take some."""
# Blocks that keep an H100 of 132 multiprocessors busy: fewer, and narrower blocks win.
_ENOUGH_BLOCKS = 120


def widest_blocks(m: int, cols: int, shapes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The first of some shapes that fits and gives enough blocks, else one warpgroup and 64 rows.

    Args:
      m, cols: rows and columns of the result.
      shapes: warpgroups side by side and rows of a block, widest first.
    """
    for warpgroups, rows in shapes:
        blocks = -(-m // rows) * cols // (OUTPUTS * warpgroups)
        if cols % (OUTPUTS * warpgroups) == 0 and blocks >= _ENOUGH_BLOCKS and rows <= m:
            return warpgroups, rows
    return 1, 64


def check_blocks(block_m: int, rows: tuple[int, ...], warpgroups: int, stages: int) -> None:
    """Raises ValueError for fields of a ``MosaicConfig`` that no kernel takes.

    Args:
      block_m: rows of activations of one program, one of ``rows``.
      rows: what a kernel takes.
      warpgroups: that multiply, 1 or 2.
      stages: steps in flight, at least 2.
    """
    if block_m not in rows:
        *others, last = map(str, rows)
        raise ValueError(f"MosaicConfig.block_m must be {', '.join(others)} or {last}, got {block_m}")
    if warpgroups not in (1, 2):
        raise ValueError(f"MosaicConfig.warpgroups must be 1 or 2, got {warpgroups}")
    if stages < 2:
        raise ValueError(f"MosaicConfig.stages must be at least 2, got {stages}")
