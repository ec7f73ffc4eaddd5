"""A convolution from its factors, one after the other or through the kernel; both are one function."""

import functools
import math

import jax
import jax.numpy as jnp

from compressjax.factorization.tensor_conv.config import TensorConv
from compressjax.factorization.tensor_conv.cost import conv_cost
from compressjax.factorization.tensor_conv.factors import Factors, conv_kernel, factor_shapes

# Products that a processor does while it moves one float32: about that on GPUs without tensor cores, and on a CPU,
# where 32 channels of 16 x 16 with 5 x 5 taps and rank 4 took 0.9 ms through the kernel and 1.7 ms by factors.
_MACS_PER_NUMBER_MOVED = 40


def order_of(cfg: TensorConv, in_features: int, spatial: tuple[int, ...]) -> str:
    """What ``order="auto"`` is for an input of this size: "factors" or "kernel".

    Products and numbers moved are weighed against each other, for the factors' passes along an axis do little with
    what they read: fewer products alone do not make them faster.
    """
    if cfg.format == "dense":
        return "kernel"
    if cfg.order != "auto":
        return cfg.order
    cost = conv_cost(cfg, in_features, spatial)
    factors = cost.macs + _MACS_PER_NUMBER_MOVED * cost.moved
    return "factors" if factors < cost.kernel_macs + _MACS_PER_NUMBER_MOVED * cost.dense_moved else "kernel"


def apply_conv(p: Factors, x: jax.Array, cfg: TensorConv) -> jax.Array:
    """The layer's output.

    Args:
      p: parameters by name, of the shapes of ``factor_shapes``.
      x: ``[batch, *spatial, in]``, floating point.
      cfg: the layer.

    Returns:
      ``[batch, *spatial', out]`` in the dtype of ``x``.

    Raises:
      ValueError: an input of another rank or width, or parameters of other names or shapes.
      TypeError: an input that is not floating point.
    """
    axes = len(cfg.kernel_size)
    if x.ndim != axes + 2:
        raise ValueError(f"x must be [batch, {axes} axes, in] for a kernel {cfg.kernel_size}, got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got {x.dtype}")
    wanted = factor_shapes(cfg, x.shape[-1])
    shapes = {name: value.shape for name, value in p.items()}
    if shapes != wanted:
        raise ValueError(f"parameters for {x.shape[-1]} input channels must be {wanted}, got {shapes}")
    p = {name: value.astype(x.dtype) for name, value in p.items()}
    if order_of(cfg, x.shape[-1], x.shape[1:-1]) == "kernel":
        y = _convolve(x, conv_kernel(p, cfg), cfg)
    else:
        y = _by_factors(p, x, cfg)
    return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if cfg.use_bias else y


def _by_factors(p, x, cfg):
    cin, out, rank = x.shape[-1], cfg.features, cfg.rank
    if cfg.format == "channelwise":
        z = x[..., None]  # taps bring the second axis, of outputs and products
        for axis, taps in enumerate(cfg.kernel_size):
            z = _pass(z, p[f"axis{axis}"].reshape(taps, cin, out * rank), axis, cfg)
        return z.reshape(*z.shape[:-2], cin, out, rank).sum((-3, -1))
    z = x @ p["channel"].reshape(cin, -1)
    if cfg.format == "tucker2":
        return _convolve(z, p["core"], cfg) @ p["out"]
    for axis, taps in enumerate(cfg.kernel_size):
        z = _pass(z, p[f"axis{axis}"].reshape(taps, -1), axis, cfg)
    return z @ p["out"] if cfg.format == "cp" else z.reshape(*z.shape[:-1], out, rank).sum(-1)


def _pass(z, taps, axis, cfg):
    """Every channel filtered by itself along one axis, as a sum of shifted slices.

    Not a grouped convolution, which is many times slower on CPUs; filters have few taps.
    """
    stride, dilation, at = cfg.stride_of[axis], cfg.dilation_of[axis], axis + 1
    z = _padded(z, at, axis, cfg)
    span = (len(taps) - 1) * dilation + 1
    count = (z.shape[at] - span) // stride + 1

    def term(j):
        last = j * dilation + (count - 1) * stride + 1
        shifted = jax.lax.slice_in_dim(z, j * dilation, last, stride, axis=at)
        return shifted * taps[j].reshape((1,) * (z.ndim - taps[j].ndim) + taps[j].shape)

    return functools.reduce(jnp.add, [term(j) for j in range(len(taps))])


def _padded(z, at, axis, cfg):
    """``z`` with what the padding adds to its axis ``at``, spatial axis ``axis`` of the layer."""
    span = (cfg.kernel_size[axis] - 1) * cfg.dilation_of[axis] + 1
    if cfg.padding == "VALID":
        return z
    if cfg.padding == "SAME":
        ((low, high),) = jax.lax.padtype_to_pads((z.shape[at],), (span,), (cfg.stride_of[axis],), "SAME")
    else:
        low = high = span // 2
    widths = [(low, high) if i == at else (0, 0) for i in range(z.ndim)]
    return jnp.pad(z, widths, mode="wrap" if cfg.padding == "CIRCULAR" else "constant")


def _convolve(x, kernel, cfg):
    for axis in range(len(cfg.kernel_size)):
        x = _padded(x, axis + 1, axis, cfg)
    if math.prod(cfg.kernel_size) == 1 and set(cfg.stride_of) == {1}:
        return x @ kernel.reshape(kernel.shape[-2:])
    spatial = "XYZ"[: len(cfg.kernel_size)]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=cfg.stride_of,
        padding="VALID",
        rhs_dilation=cfg.dilation_of,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
