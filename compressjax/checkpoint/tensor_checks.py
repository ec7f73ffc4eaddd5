"""Checks that every weight passes on its way in, with messages that name file, tensor, wanted and got."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def check_finite(values: np.ndarray, *, path: Path, name: str) -> None:
    """Refuse NaN and infinity. Minimum and maximum carry both through, without a temporary of the tensor's size.

    Raises:
      ValueError: naming the file and the tensor.
    """
    with np.errstate(invalid="ignore"):
        sound = values.size == 0 or bool(np.isfinite(values.min()) and np.isfinite(values.max()))
    if not sound:
        bad = int(values.size - np.isfinite(values).sum())
        raise ValueError(f"{path}: tensor {name} holds {bad} NaN or infinite values out of {values.size}")


def check_shape(got: tuple[int, ...], wanted: tuple[int, ...], *, path: Path, name: str) -> None:
    """Refuse a tensor whose shape is not what the model's configuration asks for.

    Raises:
      ValueError: naming the file, the tensor and both shapes.
    """
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{path}: tensor {name} should have shape {tuple(wanted)} by the configuration, got {tuple(got)}"
        )


def check_names(present: Iterable[str], wanted: Iterable[str], *, path: Path, ignored: Iterable[str] = ()) -> None:
    """Refuse a checkpoint that lacks tensors of the model or holds tensors the model has no place for.

    Raises:
      ValueError: naming the first few of either.
    """
    present, wanted = set(present), set(wanted)
    missing, unknown = sorted(wanted - present), sorted(present - wanted - set(ignored))
    if missing:
        raise ValueError(f"{path}: {len(missing)} tensors are missing: {_some(missing)}")
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} tensors have no place in the model: {_some(unknown)}")


def _some(names: list[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
