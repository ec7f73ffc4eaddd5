"""Compressing checkpoints from disk to disk."""

from compressjax.streaming.compress import compress_model, partial_path, read_summary
from compressjax.streaming.summary import CompressionSummary, MatrixRow

__all__ = ["CompressionSummary", "MatrixRow", "compress_model", "partial_path", "read_summary"]
