"""Tensor-format convolutions as flax layers, and a network of them."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from compressjax.factorization.tensor_conv.apply import apply_conv
from compressjax.factorization.tensor_conv.config import TensorConv
from compressjax.factorization.tensor_conv.factors import factor_shapes, init_conv
from compressjax.models.layers import read_or_init


class TensorConvLayer(nn.Module):
    """A linen layer; its parameters are the factors by name.

    Attributes:
      cfg: the convolution.
    """

    cfg: TensorConv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [batch, *spatial, in] -> [batch, *spatial', out]``."""
        shapes = factor_shapes(self.cfg, x.shape[-1])
        # One draw for all, so that linen, nnx and plain functions start alike.
        drawn = init_conv(self.make_rng("params"), x.shape[-1], self.cfg) if self.is_initializing() else {}
        p = {name: read_or_init(self, name, lambda *_, n=name: drawn[n], shape) for name, shape in shapes.items()}
        return apply_conv(p, x, self.cfg)


class TensorConvNnx(nnx.Module):
    """The same as an nnx module.

    Args:
      in_features: input channels.
      cfg: the convolution.
      rngs: source of randomness, stream ``params``.
    """

    def __init__(self, in_features: int, cfg: TensorConv, *, rngs: nnx.Rngs):
        self.cfg = cfg
        for name, value in init_conv(rngs.params(), in_features, cfg).items():
            setattr(self, name, nnx.Param(value))
        self.in_features = in_features

    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [batch, *spatial, in] -> [batch, *spatial', out]``."""
        names = factor_shapes(self.cfg, self.in_features)
        return apply_conv({name: getattr(self, name).get_value() for name in names}, x, self.cfg)


class ConvStack(nn.Module):
    """Layers one after the other, an activation between them; strides and ``resize`` make an encoder and decoder.

    Attributes:
      specs: the layers; ``conv0``, ``conv1``, ... in the parameters.
      resize: by how much the input of each layer is enlarged first, every value repeated; all 1 when empty.
      activation: between layers.
    """

    specs: tuple[TensorConv, ...]
    resize: tuple[int, ...] = ()
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [batch, *spatial, in] -> [batch, *spatial', out]``."""
        for place, (spec, times) in enumerate(zip(self.specs, self.resize or (1,) * len(self.specs), strict=True)):
            x = self.activation(x) if place else x
            for axis in range(1, x.ndim - 1):
                x = jnp.repeat(x, times, axis=axis) if times > 1 else x
            x = TensorConvLayer(spec, name=f"conv{place}")(x)
        return x
