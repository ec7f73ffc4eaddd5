"""Product with a packed matrix plus single weights at places of their own, in one launch."""

from pallas_kernels.outlier_matmul.api import Outliers, outlier_matmul

__all__ = ["Outliers", "outlier_matmul"]
