"""Weights as few-bit codes."""

from compressjax.quantization.comet import COMET, comet, comet_shared
from compressjax.quantization.decoupleq import decoupleq, decoupleq_shared
from compressjax.quantization.decoupleq_config import DecoupleQ
from compressjax.quantization.gptq import gptq, gptq_shared
from compressjax.quantization.gptq_config import GPTQ
from compressjax.quantization.nupes import NUPES
from compressjax.quantization.powerquant import PowerQuant, shared_exponent
from compressjax.quantization.quantize import quantize, quantize_with_info
from compressjax.quantization.rtn import RTN, rtn
from compressjax.quantization.spqr import spqr, spqr_shared
from compressjax.quantization.spqr_config import SpQR
from compressjax.quantization.squeezellm import squeezellm
from compressjax.quantization.squeezellm_config import SqueezeLLM

__all__ = [
    "COMET",
    "DecoupleQ",
    "GPTQ",
    "NUPES",
    "PowerQuant",
    "RTN",
    "SpQR",
    "SqueezeLLM",
    "comet",
    "comet_shared",
    "decoupleq",
    "decoupleq_shared",
    "gptq",
    "gptq_shared",
    "quantize",
    "quantize_with_info",
    "rtn",
    "spqr",
    "spqr_shared",
    "squeezellm",
    "shared_exponent",
]
