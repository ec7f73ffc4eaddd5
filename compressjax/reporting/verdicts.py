"""Matrices that need a reader's eye."""

from collections.abc import Sequence

from compressjax.streaming import CompressionSummary, MatrixRow


def is_plain(row: MatrixRow) -> bool:
    """Whether the matrix was rounded to nearest because that was the method, not because another one failed."""
    return not row.fallback and row.error == row.rounding_error


def disappointing(summary: CompressionSummary) -> tuple[MatrixRow, ...]:
    """Matrices that fell back or did not beat plain rounding though their method should have."""
    return tuple(row for row in summary.not_better if not is_plain(row))


def worst(rows: Sequence[MatrixRow], count: int) -> tuple[MatrixRow, ...]:
    """The ``count`` matrices with the largest relative error, largest first."""
    return tuple(sorted(rows, key=lambda row: row.error, reverse=True)[:count])


def mean_errors(rows: Sequence[MatrixRow]) -> tuple[float, float] | None:
    """Mean relative error over matrices, of the method and of plain rounding; None without matrices."""
    if not rows:
        return None
    return sum(row.error for row in rows) / len(rows), sum(row.rounding_error for row in rows) / len(rows)
