"""Product of few rows with a matrix that stores some groups of its weights, in few bits."""

from pallas_kernels.group_sparse_matmul.api import group_sparse_matmul
from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout, StoredGroups

__all__ = ["GroupSparseLayout", "StoredGroups", "group_sparse_matmul"]
