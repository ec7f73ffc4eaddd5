"""Rounding blocks of numbers to 2, 4 or 8 bits and packing them in one pass over memory, and the way back."""

from pallas_kernels.quantize_pack.api import quantize_pack, unpack_dequantize
from pallas_kernels.quantize_pack.layout import Packed, PackLayout

__all__ = ["PackLayout", "Packed", "quantize_pack", "unpack_dequantize"]
