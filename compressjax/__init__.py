"""Compressing everything a neural network is made of or feeds on, as pure functions from pytree to pytree.

The verbs are here; methods (``quantization.GPTQ``), models, checkpoints, data and evaluation are reached by module.
"""

from compressjax._version import __version__
from compressjax.calibration import calibrate
from compressjax.ops import dense, matmul, nbits
from compressjax.quantization import quantize

__all__ = ["__version__", "calibrate", "dense", "matmul", "nbits", "quantize"]
