"""The plain cache through the protocol: nothing is compressed. The yardstick of all others, and the codec of layers and
heads that a rule leaves alone."""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses
from typing import NamedTuple

import jax

from compressjax.kvcache.blocks import BlockCodec, mix_values
from compressjax.kvcache.latent_attention import Latents
from compressjax.kvcache.partial import dot


class Plain(NamedTuple):
    """``k [B, K, n, d]`` and ``v [B, K, n, e]`` in the cache's dtype."""

    k: jax.Array
    v: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseKV(BlockCodec):
    """Keys and values as they are.

    Attributes:
      residual: tokens of the ring.
      sinks: first tokens held apart, as codecs do that share the layer; it changes nothing else.
    """

    residual: int = 64
    sinks: int = 0

    def __post_init__(self):
        for field, least in (("residual", 1), ("sinks", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"DenseKV.{field} must be >= {least}, got {getattr(self, field)}")

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    def compress(self, spec, fixed, k, v, tokens):
        return Plain(k.astype(spec.dtype), v.astype(spec.dtype))

    def latents(self, spec, block):
        return Latents(block.k)

    def scores(self, spec, fixed, block, q, view, slots, sub):
        return dot(q, block.k), spec.value_of(block.k, block.v)

    def average(self, spec, fixed, block, weights, again, sub):
        return mix_values(weights, again)

    def decompress(self, spec, fixed, block, slots, view, sub):
        return block.k.astype("float32"), spec.value_of(block.k, block.v).astype("float32")
