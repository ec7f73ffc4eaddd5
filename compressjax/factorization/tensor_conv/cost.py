"""What a convolution costs in each format: parameters, multiplications and activations, counted exactly."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from compressjax.factorization.tensor_conv.config import TensorConv
from compressjax.factorization.tensor_conv.factors import factor_shapes


class ConvCost(NamedTuple):
    """Costs of a convolution, or of a stack of them, for one sample.

    Attributes:
      params: trainable numbers, bias included.
      macs: multiply-accumulates, factor by factor; the bias and the sum over products are additions only.
      kernel_macs: of the one convolution with the kernel multiplied out.
      dense_params: trainable numbers of the dense layer of the same geometry, bias included.
      peak: most activations, in numbers, that one step reads and writes, factor by factor.
      moved: activations, in numbers, that all steps read and write, factor by factor.
      dense_moved: the same of the one convolution.
    """

    params: int
    macs: int
    kernel_macs: int
    dense_params: int
    peak: int
    moved: int
    dense_moved: int


def out_extent(extent: int, axis: int, cfg: TensorConv) -> int:
    """Positions along a spatial axis behind the convolution."""
    stride, span = cfg.stride_of[axis], (cfg.kernel_size[axis] - 1) * cfg.dilation_of[axis] + 1
    return -(-extent // stride) if cfg.padding != "VALID" else max(0, (extent - span) // stride + 1)


def conv_cost(cfg: TensorConv, in_features: int, spatial: Sequence[int]) -> ConvCost:
    """Costs of one layer on one sample.

    Args:
      cfg: the layer.
      in_features: input channels.
      spatial: extents of the input.

    Raises:
      ValueError: other than one extent per kernel axis, or a kernel wider than its input under "VALID".

    >>> cost = conv_cost(TensorConv(features=32, kernel_size=(5, 5), rank=4), 32, (32, 32))
    >>> cost.params, cost.dense_params
    (5408, 25632)
    """
    if len(spatial) != len(cfg.kernel_size):
        raise ValueError(f"spatial must have {len(cfg.kernel_size)} extents, got {tuple(spatial)}")
    after = [out_extent(extent, axis, cfg) for axis, extent in enumerate(spatial)]
    if min(after) < 1:
        raise ValueError(f"a kernel {cfg.kernel_size} with padding='VALID' does not fit an input {tuple(spatial)}")
    cin, out, rank = in_features, cfg.features, cfg.rank
    sites, left = math.prod(spatial), math.prod(after)
    kernel_macs = left * math.prod(cfg.kernel_size) * cin * out
    bias = out if cfg.use_bias else 0
    steps: list[tuple[int, int]] = [(0, sites * cin)]  # multiply-accumulates of a step, numbers it writes
    if cfg.format == "dense":
        steps.append((kernel_macs, left * out))
    else:
        width = {"filterwise": out * rank, "channelwise": cin * out * rank, "cp": rank, "tucker2": rank}[cfg.format]
        if cfg.format != "channelwise":
            steps.append((sites * cin * width, sites * width))
        if cfg.format == "tucker2":
            steps.append((left * math.prod(cfg.kernel_size) * rank * rank, left * rank))
        else:
            for axis, taps in enumerate(cfg.kernel_size):
                here = math.prod(after[: axis + 1]) * math.prod(spatial[axis + 1 :])
                steps.append((here * taps * width, here * width))
        steps.append((left * rank * out if cfg.format in ("cp", "tucker2") else 0, left * out))
    written = [numbers for _, numbers in steps]
    pairs = [a + b for a, b in zip(written, written[1:], strict=False)]
    return ConvCost(
        params=sum(math.prod(shape) for shape in factor_shapes(cfg, cin).values()),
        macs=sum(macs for macs, _ in steps),
        kernel_macs=kernel_macs,
        dense_params=math.prod(cfg.kernel_size) * cin * out + bias,
        peak=max(pairs),
        moved=sum(pairs),
        dense_moved=sites * cin + left * out,
    )


def stack_cost(specs: Sequence[TensorConv], in_features: int, spatial: Sequence[int], resize: Sequence[int] = ()):
    """Costs of a stack of layers, each reading the one before it; ``peak`` is the largest, all else the sum.

    Args:
      specs: layers in order.
      in_features, spatial: of the first input.
      resize: by how much the input of each layer is enlarged first; 1 for all when empty.
    """
    costs = []
    for layer, times in zip(specs, resize or (1,) * len(specs), strict=True):
        spatial = [extent * times for extent in spatial]
        costs.append(conv_cost(layer, in_features, spatial))
        spatial = [out_extent(extent, axis, layer) for axis, extent in enumerate(spatial)]
        in_features = layer.features
    total = jax.tree.map(lambda *values: sum(values), *costs)
    return total._replace(peak=max(cost.peak for cost in costs))
