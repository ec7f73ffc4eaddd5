"""Product with a stack of packed signs times low-rank magnitudes, of which a run-time number counts."""

from pallas_kernels.sign_lowrank_matmul.api import SignBlocks, sign_lowrank_matmul
from pallas_kernels.sign_lowrank_matmul.layout import SignLayout

__all__ = ["SignBlocks", "SignLayout", "sign_lowrank_matmul"]
