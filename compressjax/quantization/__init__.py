"""Weights as few-bit codes."""

from compressjax.quantization.gptq import gptq, gptq_shared
from compressjax.quantization.gptq_config import GPTQ
from compressjax.quantization.quantize import quantize, quantize_with_info
from compressjax.quantization.rtn import RTN, rtn

__all__ = ["GPTQ", "RTN", "gptq", "gptq_shared", "quantize", "quantize_with_info", "rtn"]
