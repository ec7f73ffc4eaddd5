"""Block-wise Hadamard rotation, alone or with scale, rounding, packing and row sums in the same pass."""

from pallas_kernels.hadamard.api import block_hadamard, hadamard_quantize
from pallas_kernels.hadamard.layout import HadamardLayout, Rotated

__all__ = ["HadamardLayout", "Rotated", "block_hadamard", "hadamard_quantize"]
