"""The linear, lookup and normalisation layers that the carriers share.

Each layer takes its parameter as it finds it: a plain array or a compressed leaf, which only `compressjax.ops` touches.
Statistics of norms are float32 whatever the dtype of activations.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from compressjax.ops import matmul, matmul_t, take

_KERNEL_INIT = nn.initializers.normal(stddev=0.02)  # the Llama and BERT recipes


def read_or_init(module: nn.Module, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...]) -> Any:
    """Returns parameter ``name`` of ``module``; an existing one is taken as it is.

    Linen's own `param` compares an existing value with the shapes of a fresh one, which a compressed leaf does not
    have; `compressjax.ops` checks leaves where they are used.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, jnp.float32)


def along_last_axis(vector: jax.Array, rank: int) -> jax.Array:
    """``[d] -> [1, ..., 1, d]`` of the given rank, so that nothing leans on rank promotion."""
    return vector.reshape((1,) * (rank - 1) + vector.shape)


class Dense(nn.Module):
    """``y = x W + b`` with parameters ``kernel [in, out]`` and, if asked, ``bias [out]``.

    Attributes:
      features: out.
      use_bias: whether there is a bias.
      dtype: of the product; None keeps that of ``x``.
    """

    features: int
    use_bias: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [..., in] -> [..., out]``."""
        dtype = self.dtype or x.dtype
        kernel = read_or_init(self, "kernel", _KERNEL_INIT, (x.shape[-1], self.features))
        y = matmul(x.astype(dtype), kernel)
        if self.use_bias:
            bias = read_or_init(self, "bias", nn.initializers.zeros, (self.features,))
            y = y + along_last_axis(bias.astype(dtype), y.ndim)
        return y


class Embedding(nn.Module):
    """Rows of ``embedding [vocab, d]``; `attend` is the tied output head.

    Attributes:
      vocab, features: table sizes.
      dtype: of the rows returned.
    """

    vocab: int
    features: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.embedding = read_or_init(self, "embedding", _KERNEL_INIT, (self.vocab, self.features))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """``ids int [...] -> [..., d]``."""
        return take(self.embedding, ids).astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """``x [..., d] -> x Eᵀ [..., vocab]``, in the dtype of ``x``."""
        return matmul_t(x, self.embedding)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x²) + eps) * scale`` over the last axis (Zhang and Sennrich, 2019), float32 inside.

    Attributes:
      eps: epsilon.
      dtype: of the result; None keeps that of ``x``.
    """

    eps: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [..., d] -> [..., d]``."""
        scale = read_or_init(self, "scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * along_last_axis(scale, x.ndim)).astype(self.dtype or x.dtype)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * scale + bias`` over the last axis (Ba et al., 2016), float32 inside.

    Attributes:
      eps: epsilon.
      dtype: of the result; None keeps that of ``x``.
    """

    eps: float
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``x [..., d] -> [..., d]``."""
        scale = read_or_init(self, "scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        bias = read_or_init(self, "bias", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        wide = wide * along_last_axis(scale, x.ndim) + along_last_axis(bias, x.ndim)
        return wide.astype(self.dtype or x.dtype)
