"""From the layers of a dense network to those of the same network in a tensor format, before any training."""

import dataclasses
import math
from collections.abc import Sequence

from compressjax.factorization.tensor_conv.config import FORMATS, Format, TensorConv
from compressjax.factorization.tensor_conv.factors import factor_shapes


def _params(cfg: TensorConv, in_features: int) -> int:
    return sum(math.prod(shape) for shape in factor_shapes(cfg, in_features).values())


def break_even_conv_rank(cfg: TensorConv, in_features: int) -> int:
    """The largest rank at which the format has fewer parameters than the dense kernel; 0 when none has.

    >>> [break_even_conv_rank(TensorConv(features=32, kernel_size=(k, k)), 32) for k in (3, 5)]
    [7, 19]
    """
    dense = _params(dataclasses.replace(cfg, format="dense", order="auto", start="gaussian"), in_features)
    rank = 0
    while _params(dataclasses.replace(cfg, rank=rank + 1), in_features) < dense and cfg.format != "dense":
        rank += 1
    return rank


def compress_spec(
    specs: Sequence[TensorConv],
    in_features: int,
    *,
    rank: int | None = None,
    param_ratio: float | None = None,
    format: Format = "filterwise",
    ends: bool = True,
) -> tuple[TensorConv, ...]:
    """The layers in a tensor format; it acts on the architecture, not on weights.

    Args:
      specs: dense layers in order.
      in_features: of the first.
      rank: of every layer, or
      param_ratio: how many times fewer parameters every layer has at least; each takes the largest rank that gives it.
      format: of the kernels.
      ends: whether the first and the last layer change too.

    Raises:
      ValueError: neither or both of ``rank`` and ``param_ratio``, a layer that is not dense, an unknown format, or a
        ratio that no rank reaches.

    >>> net = tuple(TensorConv(features=n, kernel_size=(5, 5), format="dense") for n in (32, 32, 4))
    >>> [layer.rank for layer in compress_spec(net, 3, param_ratio=3.0)]
    [1, 6, 6]
    """
    if (rank is None) == (param_ratio is None):
        raise ValueError(f"give rank or param_ratio, one of the two; got {rank} and {param_ratio}")
    if format not in FORMATS or format == "dense":
        raise ValueError(f"format must be one of {FORMATS[1:]}, got {format!r}")
    found = []
    for place, layer in enumerate(specs):
        if layer.format != "dense":
            raise ValueError(f"specs[{place}] must be dense, got format={layer.format!r}")
        if not ends and place in (0, len(specs) - 1):
            found.append(layer)
        else:
            new = dataclasses.replace(layer, format=format, rank=rank or 1)
            if param_ratio is not None:
                new = _with_ratio(new, layer, in_features, param_ratio, place)
            found.append(new)
        in_features = layer.features
    return tuple(found)


def _with_ratio(new, layer, in_features, ratio, place):
    most = _params(layer, in_features) / ratio
    rank = 0
    while _params(dataclasses.replace(new, rank=rank + 1), in_features) <= most:
        rank += 1
    if not rank:
        smallest = _params(new, in_features)
        raise ValueError(f"param_ratio={ratio} asks for {most:.0f} parameters of specs[{place}]; rank 1 has {smallest}")
    return dataclasses.replace(new, rank=rank)
