"""Product with a matrix of packed integers that have a scale and a zero per group."""

from pallas_kernels.affine_matmul.api import affine_matmul
from pallas_kernels.affine_matmul.layout import AffineLayout

__all__ = ["AffineLayout", "affine_matmul"]
