"""Kernels of GPTQ and compressed-tensors checkpoints as affine leaves, whoever made them.

Each reader follows the checkpoint reader's protocol for the storage of linears: ``layout`` names a linear's tensors and
their shapes, ``read`` returns the kernel. A linear without packed tensors is a plain one, whatever the configuration
says of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from compressjax.exchange.compressed_tensors_config import read_compressed_config
from compressjax.exchange.compressed_tensors_layout import names, unpack_compressed
from compressjax.exchange.gptq_config import read_gptq_config
from compressjax.exchange.gptq_layout import NAMES, unpack_gptq
from compressjax.exchange.plain import pack_leaf
from compressjax.exchange.scheme import PlainAffine, Scheme
from compressjax.leaf import Affine

Shapes = dict[str, tuple[int, ...] | None]


class Tensors(Protocol):
    """The tensors of a folder by name."""

    @property
    def shards(self) -> Mapping[str, Any]:
        """Names present, whatever they map to."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype."""
        ...

    def read_float32(self, name: str) -> np.ndarray:
        """One floating tensor as float32, checked to be finite."""
        ...


@dataclasses.dataclass(frozen=True)
class GPTQLinears:
    """Linears of a GPTQ checkpoint.

    Attributes:
      scheme_of: module name -> scheme.
      version: 1 or 2, how zeros are stored.
    """

    scheme_of: Callable[[str], Scheme]
    version: int

    def layout(self, folder: Tensors, prefix: str, inputs: int, outputs: int) -> Shapes:
        """Names and shapes of the tensors of one linear."""
        if f"{prefix}.qweight" not in folder.shards:
            return {f"{prefix}.weight": (outputs, inputs)}
        scheme = self.scheme_of(prefix)
        groups = 1 if scheme.group == -1 else -(-inputs // scheme.group)
        shapes: Shapes = {
            f"{prefix}.qweight": (-(-inputs * scheme.bits // 32), outputs),
            f"{prefix}.qzeros": (groups, -(-outputs * scheme.bits // 32)),
            f"{prefix}.scales": (groups, outputs),
        }
        if f"{prefix}.g_idx" in folder.shards:
            shapes[f"{prefix}.g_idx"] = (inputs,)
        return shapes

    def read(self, folder: Tensors, prefix: str, inputs: int, outputs: int) -> np.ndarray | Affine:
        """Kernel of one linear: a leaf, or float32 ``[inputs, outputs]``.

        Raises:
          ValueError: tensors that do not fit each other or the model; names the linear.
        """
        if f"{prefix}.qweight" not in folder.shards:
            return _plain(folder, prefix)
        tensors = {name: folder.read(f"{prefix}.{name}") for name in NAMES if f"{prefix}.{name}" in folder.shards}
        scheme = self.scheme_of(prefix)
        return _leaf(prefix, inputs, outputs, lambda: unpack_gptq(tensors, scheme, version=self.version))


@dataclasses.dataclass(frozen=True)
class CompressedLinears:
    """Linears of a compressed-tensors checkpoint in the ``pack-quantized`` format.

    Attributes:
      scheme_of: module name -> scheme.
    """

    scheme_of: Callable[[str], Scheme]

    def layout(self, folder: Tensors, prefix: str, inputs: int, outputs: int) -> Shapes:
        """Names of the tensors of one linear; shapes are checked against each other when it is read."""
        if f"{prefix}.weight_packed" not in folder.shards:
            return {f"{prefix}.weight": (outputs, inputs)}
        return {f"{prefix}.{name}": None for name in names(self.scheme_of(prefix))}

    def read(self, folder: Tensors, prefix: str, inputs: int, outputs: int) -> np.ndarray | Affine:
        """Kernel of one linear: a leaf, or float32 ``[inputs, outputs]``.

        Raises:
          ValueError: tensors that do not fit each other or the model; names the linear.
        """
        if f"{prefix}.weight_packed" not in folder.shards:
            return _plain(folder, prefix)
        scheme = self.scheme_of(prefix)
        tensors = {name: folder.read(f"{prefix}.{name}") for name in names(scheme)}
        return _leaf(prefix, inputs, outputs, lambda: unpack_compressed(tensors, scheme))


def gptq_linears(quantization: Mapping[str, Any]) -> GPTQLinears:
    """Reader of linears for a ``quantization_config`` of ``quant_method`` "gptq".

    Raises:
      ValueError: a key is missing or wrong.
      NotImplementedError: a variant of the format that is not read.
    """
    scheme_of, version = read_gptq_config(quantization)
    return GPTQLinears(scheme_of, version)


def compressed_linears(quantization: Mapping[str, Any]) -> CompressedLinears:
    """Reader of linears for a ``quantization_config`` of ``quant_method`` "compressed-tensors".

    Raises:
      ValueError: a key is missing or wrong.
      NotImplementedError: a format other than ``pack-quantized``, or more than weights is quantised.
    """
    return CompressedLinears(read_compressed_config(quantization))


def _plain(folder: Tensors, prefix: str) -> np.ndarray:
    return np.ascontiguousarray(folder.read_float32(f"{prefix}.weight").T)


def _leaf(prefix: str, inputs: int, outputs: int, unpack: Callable[[], PlainAffine]) -> Affine:
    try:
        plain = unpack()
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    if plain.codes.shape != (inputs, outputs):
        raise ValueError(f"{prefix}: the model needs a weight of {(inputs, outputs)}, got codes of {plain.codes.shape}")
    if not np.isfinite(plain.scale.astype(np.float32)).all():
        raise ValueError(f"{prefix}: the scales hold NaN or infinite values")
    return pack_leaf(plain)
