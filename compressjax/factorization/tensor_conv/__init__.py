"""Convolutions that are trained in a tensor format from the start, with one-way filters in place of kernels.

Boukraichi, Akkari, Casenave and Ryckelynck, 2023, arXiv 2304.04964. Only the paper's abstract was to be had and there
is no code. That three-way kernels (one per output channel) and two-way kernels (one per pair of channels) become sums
of outer products of one-way filters is the paper's; the other formats and all particulars are ours.
"""

from compressjax.factorization.tensor_conv.apply import apply_conv, order_of
from compressjax.factorization.tensor_conv.config import TensorConv
from compressjax.factorization.tensor_conv.cost import ConvCost, conv_cost, stack_cost
from compressjax.factorization.tensor_conv.factors import balance_conv, conv_kernel, factor_shapes, init_conv
from compressjax.factorization.tensor_conv.fit import fit_conv
from compressjax.factorization.tensor_conv.layers import ConvStack, TensorConvLayer, TensorConvNnx
from compressjax.factorization.tensor_conv.specs import break_even_conv_rank, compress_spec

__all__ = [
    "ConvCost",
    "ConvStack",
    "TensorConv",
    "TensorConvLayer",
    "TensorConvNnx",
    "apply_conv",
    "balance_conv",
    "break_even_conv_rank",
    "compress_spec",
    "conv_cost",
    "conv_kernel",
    "factor_shapes",
    "fit_conv",
    "init_conv",
    "order_of",
    "stack_cost",
]
