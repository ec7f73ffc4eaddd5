"""What models call on weights, dense or compressed: open verbs that dispatch on the weight's type."""

from compressjax.ops.matmul import matmul, matmul_t
from compressjax.ops.size import nbits, size
from compressjax.ops.take import take
from compressjax.ops.to_dense import dense, logical_shape

__all__ = ["dense", "logical_shape", "matmul", "matmul_t", "nbits", "size", "take"]
