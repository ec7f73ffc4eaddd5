"""Product with a matrix whose groups of inputs are sums of vectors from a few codebooks."""

from pallas_kernels.additive_matmul.api import additive_matmul
from pallas_kernels.additive_matmul.layout import AdditiveLayout

__all__ = ["AdditiveLayout", "additive_matmul"]
