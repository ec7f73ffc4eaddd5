"""Codecs that round keys and values in groups: plain rounding per token, and KIVI."""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.blocks import BlockCodec, mix_values
from compressjax.kvcache.latent_attention import Latents
from compressjax.kvcache.packed import Axis, Packed, pack_groups, unpack_groups
from compressjax.kvcache.packed_append import append_groups, append_refusal
from compressjax.kvcache.packed_attention import Rounded
from compressjax.kvcache.partial import dot
from compressjax.kvcache.protocol import KVSpec
from compressjax.models.rope import rotary_angles, rotate


class Format(NamedTuple):
    """How one tensor is rounded; see `pack_groups`."""

    axis: Axis
    bits: int
    group: int
    sym: bool = False


class RoundedBlock(NamedTuple):
    """Rounded keys and values of a block; no values when they are part of the keys."""

    k: Packed
    v: Packed | None


class RoundedCodec(BlockCodec):
    """Base of codecs that keep nothing but codes and scales."""

    @abc.abstractmethod
    def formats(self, spec: KVSpec) -> tuple[Format, Format]:
        """Formats of keys and values."""

    @property
    def turned_back(self) -> bool:
        """Whether keys are rounded before their rotation."""
        return False

    def check(self, spec):
        name = type(self).__name__
        widths = (spec.head_dim,) if spec.shared else (spec.head_dim, spec.values)
        for form, width in zip(self.formats(spec), widths, strict=False):
            if form.axis == "token" and width % form.group:
                raise ValueError(f"{name}.group={form.group} does not divide the head width {width} on the token axis")
            if form.axis == "channel" and self.chunk % form.group:
                raise ValueError(f"{name}.group={form.group} does not divide the ring of {self.chunk} tokens")
        if self.turned_back and spec.rope is None:
            raise ValueError(f"{name}.pre_rope needs a model with rotary positions; KVSpec.rope is None")

    def compress(self, spec, fixed, k, v, tokens):
        key, value = self.formats(spec)
        if self.turned_back:
            k = _turn(spec, k, tokens.positions, back=True)
        packed = pack_groups(k, key.axis, bits=key.bits, group=key.group, sym=key.sym, keep=tokens.keep)
        if spec.shared:
            return RoundedBlock(packed, None)
        return RoundedBlock(
            packed, pack_groups(v, value.axis, bits=value.bits, group=value.group, sym=value.sym, keep=tokens.keep)
        )

    def append_refusal(self, spec, k, v):
        key, value = self.formats(spec)
        why = append_refusal(k[0], key.axis, key.group)
        return why if why or spec.shared else append_refusal(v[0], value.axis, value.group)

    def append_block(self, spec, fixed, blocks, k, v, tokens, at):
        key, value = self.formats(spec)
        if self.turned_back:
            k = _turn(spec, k.astype(jnp.float32), tokens.positions, back=True)
        keys = append_groups(blocks.k, k, tokens.keep, at, **key._asdict())
        if spec.shared:
            return RoundedBlock(keys, None)
        return RoundedBlock(keys, append_groups(blocks.v, v, tokens.keep, at, **value._asdict()))

    def rounded_sides(self, spec, block):
        if spec.shared:
            return "values are part of the keys"
        if self.turned_back:
            return "keys are stored before their rotation"
        key, value = self.formats(spec)
        return Rounded(block.k, key.axis, key.bits), Rounded(block.v, value.axis, value.bits)

    def latents(self, spec, block):
        if self.turned_back:
            return "keys are stored before their rotation"
        key, _ = self.formats(spec)
        return Latents(block.k, key.axis, key.bits)

    def _keys(self, spec, block, slots, view):
        key, _ = self.formats(spec)
        k = unpack_groups(block.k, key.axis, bits=key.bits)
        return _turn(spec, k, view.positions[:, slots], back=False) if self.turned_back else k

    def _values(self, spec, block, k):
        _, value = self.formats(spec)
        return spec.value_of(k, k) if spec.shared else unpack_groups(block.v, value.axis, bits=value.bits)

    def scores(self, spec, fixed, block, q, view, slots, sub):
        k = self._keys(spec, block, slots, view)
        return dot(q, k), self._values(spec, block, k)

    def average(self, spec, fixed, block, weights, again, sub):
        return mix_values(weights, again)

    def decompress(self, spec, fixed, block, slots, view, sub):
        k = self._keys(spec, block, slots, view)
        return k, self._values(spec, block, k)


def _turn(spec: KVSpec, k: jax.Array, positions: jax.Array, *, back: bool) -> jax.Array:
    """Keys ``[B, K, n, d]`` turned to, or back from, their positions ``[B, n]``."""
    assert spec.rope is not None
    cos, sin = rotary_angles(positions, spec.head_dim, *spec.rope)
    return jnp.swapaxes(rotate(jnp.swapaxes(k, 1, 2), cos, -sin if back else sin), 1, 2)


def check_ring(name: str, residual: int, group: int | None = None) -> None:
    """Refuses rings whose codes would not fill whole words or whose groups would be cut."""
    if residual < 32 or residual % 32 or (group is not None and residual % group):
        also = "" if group is None else f" and of group={group}"
        raise ValueError(f"{name}.residual must be a positive multiple of 32{also}, got {residual}")


def check_sinks(name: str, sinks: int) -> None:
    """Refuses a negative number of sinks."""
    if sinks < 0:
        raise ValueError(f"{name}.sinks must be >= 0, got {sinks}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KIVI(RoundedCodec):
    """Keys per channel over ``group`` tokens, values per token over ``group`` channels, asymmetric.

    Liu et al., 2024, "KIVI", arXiv 2402.02750. Sinks are not in the paper; 0 turns them off.

    Attributes:
      bits: code width, 1 to 8.
      group: values that share a scale and a low end of 16 bits each.
      residual: tokens of the exact ring, a multiple of 32 and of ``group``.
      sinks: first tokens kept exactly.
    """

    bits: int = 2
    group: int = 32
    residual: int = 128
    sinks: int = 4

    def __post_init__(self):
        if self.bits not in range(1, 9):
            raise ValueError(f"KIVI.bits must be in 1..8, got {self.bits}")
        if self.group < 2:
            raise ValueError(f"KIVI.group must be >= 2, got {self.group}")
        check_ring("KIVI", self.residual, self.group)
        check_sinks("KIVI", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    def formats(self, spec: KVSpec) -> tuple[Format, Format]:
        return Format("channel", self.bits, self.group), Format("token", self.bits, self.group)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundKV(RoundedCodec):
    """Plain rounding: keys and values alike, one scale and one low end per token and head (or per ``group`` channels).

    Attributes:
      bits: code width, 1 to 8.
      group: channels that share a scale; None is the head's width.
      residual: tokens of the exact ring, a multiple of 32.
      sinks: first tokens kept exactly.
    """

    bits: int = 4
    group: int | None = None
    residual: int = 64
    sinks: int = 4

    def __post_init__(self):
        if self.bits not in range(1, 9):
            raise ValueError(f"RoundKV.bits must be in 1..8, got {self.bits}")
        if self.group is not None and self.group < 2:
            raise ValueError(f"RoundKV.group must be None or >= 2, got {self.group}")
        check_ring("RoundKV", self.residual)
        check_sinks("RoundKV", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    def formats(self, spec: KVSpec) -> tuple[Format, Format]:
        return (
            Format("token", self.bits, self.group or spec.head_dim),
            Format("token", self.bits, self.group or spec.values),
        )
