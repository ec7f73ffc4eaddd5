"""The verb ``report``: what every weight of a tree has become, as a table."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from compressjax.driver import MatrixInfo
from compressjax.leaf.registration import is_leaf
from compressjax.ops import logical_shape, nbits, size
from compressjax.select import weights


class WeightRow(NamedTuple):
    """One weight, or one stack of them.

    Attributes:
      path: where it stands in the tree.
      form: how it is stored: "float32" for an array, "Affine(bits=3, group=64)" for a leaf.
      shape: its logical shape.
      bits_per_weight: everything stored for it over its number of weights.
      bytes: what is stored.
      error: squared output error relative to the output's energy, mean over a stack; None when no method reported it.
      rounding_error: the same for plain rounding at the same bits and groups.
    """

    path: str
    form: str
    shape: tuple[int, ...]
    bits_per_weight: float
    bytes: int
    error: float | None
    rounding_error: float | None


@dataclasses.dataclass(frozen=True)
class TreeReport:
    """A row per weight; ``str`` of it is a table.

    Attributes:
      rows: in the order of the tree.
    """

    rows: tuple[WeightRow, ...]

    @property
    def bytes(self) -> int:
        """What the whole tree stores."""
        return sum(row.bytes for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Over the whole tree, what is not compressed included."""
        return 8 * self.bytes / sum(int(np.prod(row.shape)) for row in self.rows)

    def __str__(self) -> str:
        reported = any(row.error is not None for row in self.rows)
        header: tuple[str, ...] = (
            "weight",
            "form",
            "shape",
            "bits",
            "bytes",
            *(("error", "rounding") if reported else ()),
        )
        lines: list[tuple[str, ...]] = [header]
        for row in self.rows:
            errors = [row.error, row.rounding_error] if reported else []
            shape = "x".join(map(str, row.shape)) or "scalar"
            shown = (row.path, row.form, shape, f"{row.bits_per_weight:.3f}", f"{row.bytes:,}")
            lines.append((*shown, *("" if value is None else f"{value:.3g}" for value in errors)))
        lines.append(("all", "", "", f"{self.bits_per_weight:.3f}", f"{self.bytes:,}", *([""] * (len(header) - 5))))
        widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(places))
            for places in (list(zip(line, widths, strict=True)) for line in lines)
        )


def report(params: Any, infos: Mapping[str, MatrixInfo] | None = None) -> TreeReport:
    """What every weight of a tree has become: form, exact size and, where a method reported it, output error.

    Args:
      params: nested dicts of arrays and compressed leaves.
      infos: by path, as ``quantize_with_info`` and ``quantize_blockwise`` return them.

    Returns:
      :class:`TreeReport`; print it.

    Raises:
      TypeError: when the tree holds other containers than dicts.
      ValueError: when ``infos`` has a path that the tree lacks.

    >>> import jax.numpy as jnp
    >>> from compressjax.quantization import RTN, quantize
    >>> small = quantize({"up": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}}, RTN(bits=4, group=32))
    >>> print(report(small))
    weight     form                      shape   bits  bytes
    up/kernel  Affine(bits=4, group=32)  64x32  4.625  1,184
    up/bias    float32                   32    32.000    128
    all                                         5.046  1,312
    """
    found, infos = weights(params), dict(infos or {})
    unknown = sorted(set(infos) - set(found))
    if unknown:
        raise ValueError(f"infos speak of {unknown[:3]}, which params do not hold; they hold {sorted(found)[:5]} ...")
    return TreeReport(tuple(_row(path, weight, infos.get(path)) for path, weight in found.items()))


def _row(path, weight, info):
    bits = nbits(weight)
    error = rounding = None
    if info is not None:
        energy = np.maximum(np.asarray(info.energy, np.float64), np.finfo(np.float32).tiny)
        error = float(np.mean(np.asarray(info.error) / energy))
        rounding = float(np.mean(np.asarray(info.rounding_error) / energy))
    shape = tuple(logical_shape(weight)) if is_leaf(weight) else tuple(weight.shape)
    return WeightRow(path, _form(weight), shape, bits / max(size(weight), 1), -(-bits // 8), error, rounding)


def _form(weight: Any) -> str:
    """Name of a leaf's type with the parts of its layout that a reader looks for; of an array, its dtype."""
    if not is_leaf(weight):
        return str(weight.dtype)
    layout = [f"{name}={getattr(weight, name)}" for name in ("bits", "group", "n", "m", "levels", "rank")
              if isinstance(getattr(weight, name, None), int)]  # fmt: skip
    inside = [
        _form(getattr(weight, field.name))
        for field in dataclasses.fields(weight)
        if is_leaf(getattr(weight, field.name))
    ]
    return f"{type(weight).__name__}({', '.join([*layout, *inside])})"
