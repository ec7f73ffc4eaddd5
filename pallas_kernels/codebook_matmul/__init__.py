"""Product with a matrix of packed indices into small tables of levels."""

from pallas_kernels.codebook_matmul.api import codebook_matmul
from pallas_kernels.codebook_matmul.layout import CodebookLayout

__all__ = ["CodebookLayout", "codebook_matmul"]
