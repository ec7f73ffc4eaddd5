"""Product with 4-bit weights whose activations are rounded to 8 or 4 bits per token and block, in exact integers."""

from pallas_kernels.w4ax_matmul.api import w4ax_matmul, w4ax_quantize
from pallas_kernels.w4ax_matmul.layout import RoundedRows, W4AxLayout, W4AxWeight

__all__ = ["RoundedRows", "W4AxLayout", "W4AxWeight", "w4ax_matmul", "w4ax_quantize"]
