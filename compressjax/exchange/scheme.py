"""What an interchange format must be told about one quantised linear, and which leaves can be told at all."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressjax.leaf import Affine, is_leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How one linear is quantised.

    Attributes:
      bits: code width.
      group: inputs that share a scale; -1 says that all inputs of an output do, whatever their number.
      symmetric: the zero is ``2**(bits-1)`` everywhere and is not stored by formats that can leave it out.
      act_order: groups are scattered over the inputs, so a group index per input is stored.
    """

    bits: int
    group: int
    symmetric: bool
    act_order: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlainAffine:
    """An affine weight as numpy arrays, unpacked.

    Attributes:
      codes: uint8 ``[in, out]``.
      scale: float ``[groups, out]``.
      zero: uint8 ``[groups, out]``.
      g_idx: int32 ``[in]``, group of each input.
      scheme: how it is quantised.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    g_idx: np.ndarray
    scheme: Scheme


def leaf_scheme(leaf: Affine) -> Scheme:
    """Scheme of an affine leaf, stacked or not."""
    return Scheme(
        bits=leaf.bits,
        group=leaf.group,
        symmetric=leaf.zero_kind == "none",
        act_order=leaf.g_idx is not None and leaf.scale.shape[-2] > 1,
    )


def unify_groups(schemes: Mapping[str, tuple[Scheme, int]]) -> dict[str, Scheme]:
    """Says -1 for weights of one group, unless another weight needs to state that very group.

    Readers know few rules per checkpoint, some only one. Per-output grids on weights of different widths then share a
    rule, and so do weights of 64 and of 128 inputs in groups of 64.

    Args:
      schemes: name -> scheme with the group as the leaf has it, and number of inputs.
    """
    split = {scheme for scheme, rows in schemes.values() if scheme.group < rows}
    return {
        name: scheme if scheme.group < rows or scheme in split else dataclasses.replace(scheme, group=-1)
        for name, (scheme, rows) in schemes.items()
    }


def check_affine(leaf: Any, path: str, format: str, bits: tuple[int, ...]) -> None:
    """Refuses what neither interchange format can hold.

    Args:
      leaf: a compressed leaf, stacked or not.
      path: what to call it in messages.
      format: name of the format, for messages.
      bits: code widths the format has.

    Raises:
      ValueError: naming ``path`` and the reason.
    """
    if not isinstance(leaf, Affine):
        raise ValueError(
            f"{path}: {format} holds uniform integers with a scale per group only, so a {type(leaf).__name__} leaf "
            "cannot be exported; quantise it to an Affine leaf, or make it dense first"
        )
    if leaf.zero_kind == "real":
        raise ValueError(f"{path}: {format} holds integer zero points only, this leaf has real ones")
    if leaf.bits not in bits:
        raise ValueError(f"{path}: {format} holds codes of {_either(bits)} bits, this leaf has {leaf.bits}")
    if leaf.shape[0] % 32 or leaf.shape[1] % 32:
        raise ValueError(
            f"{path}: {format} packs along words of 32 bits and its kernels need both sides of a weight to be "
            f"multiples of 32, this one is {leaf.shape[0]} x {leaf.shape[1]}"
        )


def check_dense(value: Any, path: str) -> None:
    """Refuses a compressed leaf where the formats keep a plain array (embedding, norm, bias).

    Raises:
      ValueError: naming ``path``.
    """
    if is_leaf(value):
        kind = type(value).__name__
        raise ValueError(f"{path}: only kernels of linears can be exported compressed, got a {kind} leaf")


def _either(values: tuple[int, ...]) -> str:
    return ", ".join(str(v) for v in values[:-1]) + f" or {values[-1]}"
