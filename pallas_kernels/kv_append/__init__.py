"""Rounding a block of tokens to few bits, packing it and writing it to its place in a cache, in one pass."""

from pallas_kernels.kv_append.api import kv_append
from pallas_kernels.kv_append.layout import AppendLayout

__all__ = ["AppendLayout", "kv_append"]
