"""How the kernel of one linear is stored in a Hugging Face folder.

This is where quantised checkpoints plug in: a format is a ``LinearFormat``, chosen by ``quant_method`` in the table
below. Everything else (norms, embeddings, biases, names, shards) is shared.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from compressjax.checkpoint.tensor_folder import TensorFolder
from compressjax.exchange.import_ import compressed_linears, gptq_linears

Layout = dict[str, tuple[int, ...] | None]
"""Tensor name -> the shape it must have, or None where any will do."""


class LinearFormat(Protocol):
    """Storage of the kernel of the linear whose tensors start with ``prefix``; the bias is not its business."""

    def layout(self, folder: TensorFolder, prefix: str, inputs: int, outputs: int) -> Layout:
        """The tensors that hold the kernel; they may depend on what the folder holds."""
        ...

    def read(self, folder: TensorFolder, prefix: str, inputs: int, outputs: int) -> Any:
        """The kernel: float32 ``[inputs, outputs]``, or a compressed leaf of that shape."""
        ...


@dataclasses.dataclass(frozen=True)
class PlainLinear:
    """``<prefix>.weight``, floating, ``[outputs, inputs]`` as in torch."""

    def layout(self, folder: TensorFolder, prefix: str, inputs: int, outputs: int) -> Layout:
        """The one tensor."""
        return {f"{prefix}.weight": (outputs, inputs)}

    def read(self, folder: TensorFolder, prefix: str, inputs: int, outputs: int) -> np.ndarray:
        """Float32 ``[inputs, outputs]``."""
        return np.ascontiguousarray(folder.read_float32(f"{prefix}.weight").T)


QUANTIZED: Mapping[str, Callable[[Mapping[str, Any]], LinearFormat]] = MappingProxyType(
    {"gptq": gptq_linears, "compressed-tensors": compressed_linears}
)
"""``quant_method`` -> what makes the format from ``quantization_config``."""


def linear_format(config: Mapping[str, Any], path: Path) -> LinearFormat:
    """The format that a config.json asks for.

    Raises:
      NotImplementedError: a ``quant_method`` that is not in the table.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return PlainLinear()
    method = quantization.get("quant_method")
    if method not in QUANTIZED:
        known = ", ".join(QUANTIZED)
        raise NotImplementedError(
            f"{path}: reading weights of quant_method {method!r} is not supported; known: {known}"
        )
    return QUANTIZED[method](quantization)
