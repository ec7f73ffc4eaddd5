"""What a compression did, in figures: per matrix and as a whole."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from compressjax.driver import MatrixInfo
from compressjax.leaf.registration import is_leaf
from compressjax.ops import nbits, size
from compressjax.select import weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """One compressed matrix.

    Attributes:
      path: "blocks/3/attn/q/kernel".
      bits: stored bits per weight, scales, zeros, tables and padding included.
      parameters: number of weights.
      error: squared output error relative to the output's energy, on the calibration data.
      rounding_error: the same for plain min-max rounding at the same bits and groups.
      damp: relative damping of the Hessian.
      dead: inputs that never fired.
      fallback: whether the method gave up and rounded to nearest.
    """

    path: str
    bits: float
    parameters: int
    error: float
    rounding_error: float
    damp: float
    dead: int
    fallback: bool

    @property
    def better(self) -> bool:
        """Whether the method beat plain rounding."""
        return not self.fallback and self.error < self.rounding_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionSummary:
    """One compressed model.

    Attributes:
      model: its name.
      method: the method, or rules, as text.
      bits_per_weight: stored bits per weight over the compressed matrices, all overhead included.
      parameters: all parameters of the model.
      compressed_parameters: those in compressed matrices.
      bytes: the whole model as stored in arrays.
      dense_bytes_16bit: the whole model at 16 bits per parameter.
      matrices: one row per compressed matrix, in the order of the blocks.
      seconds: wall time of the run that finished it.
      note: what the caller wanted recorded (calibration text, windows, ...).
    """

    model: str
    method: str
    bits_per_weight: float
    parameters: int
    compressed_parameters: int
    bytes: int
    dense_bytes_16bit: int
    matrices: tuple[MatrixRow, ...]
    seconds: float
    note: Mapping[str, Any]

    @property
    def not_better(self) -> tuple[MatrixRow, ...]:
        """Matrices on which the method did not beat plain rounding; never silently accepted."""
        return tuple(row for row in self.matrices if not row.better)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON-able values."""
        return {**dataclasses.asdict(self), "matrices": [dataclasses.asdict(row) for row in self.matrices]}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "CompressionSummary":
        """Inverse of :meth:`to_json`."""
        rows = tuple(MatrixRow(**row) for row in fields["matrices"])
        return CompressionSummary(**{**fields, "matrices": rows})


def matrix_rows(index: int, block: Any, infos: Mapping[str, MatrixInfo]) -> tuple[MatrixRow, ...]:
    """Rows of one compressed block, from its tree and what the methods reported."""
    found, rows = weights(block), []
    for path, info in infos.items():
        leaf = found[path]
        energy = max(float(info.energy), 1e-30)
        rows.append(
            MatrixRow(
                path=f"blocks/{index}/{path}",
                bits=nbits(leaf) / size(leaf),
                parameters=size(leaf),
                error=float(info.error) / energy,
                rounding_error=float(info.rounding_error) / energy,
                damp=float(info.damp),
                dead=int(info.dead),
                fallback=bool(info.fallback),
            )
        )
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Size:
    """Bits and parameters of a tree, and of the compressed leaves in it; sizes add up."""

    bits: int = 0
    parameters: int = 0
    leaf_bits: int = 0
    leaf_parameters: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def size_of(tree: Any) -> Size:
    """Exact size of a tree."""
    leaves = [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_leaf) if is_leaf(leaf)]
    return Size(nbits(tree), size(tree), sum(map(nbits, leaves)), sum(map(size, leaves)))
