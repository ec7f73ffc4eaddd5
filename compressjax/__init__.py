"""Compressing everything a neural network is made of or feeds on, as pure functions from pytree to pytree.

The verbs are here; methods (``quantization.GPTQ``), models, checkpoints, data and evaluation are reached by module.
"""

import importlib
from typing import TYPE_CHECKING, Any

from compressjax._version import __version__

if TYPE_CHECKING:
    from compressjax.calibration import calibrate
    from compressjax.factorization import lowrank
    from compressjax.kvcache import kv_compress
    from compressjax.ops import dense, matmul, nbits
    from compressjax.quantization import quantize
    from compressjax.reporting.table import report
    from compressjax.sparsity import sparsify

__all__ = [
    "__version__",
    "calibrate",
    "dense",
    "kv_compress",
    "lowrank",
    "matmul",
    "nbits",
    "quantize",
    "report",
    "sparsify",
]

# Looked up at first use, so that the command line answers --help without waiting for jax.
_VERBS = {
    "calibrate": "compressjax.calibration",
    "dense": "compressjax.ops",
    "kv_compress": "compressjax.kvcache",
    "lowrank": "compressjax.factorization",
    "matmul": "compressjax.ops",
    "nbits": "compressjax.ops",
    "quantize": "compressjax.quantization",
    "report": "compressjax.reporting.table",
    "sparsify": "compressjax.sparsity",
}


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_VERBS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
