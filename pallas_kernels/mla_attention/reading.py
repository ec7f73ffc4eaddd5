"""Rows of a cache of latents inside a kernel, in segments of channels whose widths are powers of two."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backends import pallas_triton as triton
from pallas_kernels.kv_attention.layout import Side
from pallas_kernels.kv_attention.unpacking import power_of_two
from pallas_kernels.mla_attention.layout import MLALayout

_LEAST = 16  # a tensor-core product is at least so wide and deep


class Segment(NamedTuple):
    """Channels ``first .. first + real - 1`` of a row, as ``count`` columns.

    Attributes:
      first, real: in the row.
      count: a power of two from 16.
      latent: whether they are of the latent, and so of the value.
    """

    first: int
    real: int
    count: int
    latent: bool

    def channels(self) -> tuple[jax.Array, jax.Array | None]:
        """Channel of every column, int32 ``[count]``, and which exist; None when all do."""
        column = triton.iota(self.count)
        channel = jnp.int32(self.first) + column
        return channel, None if self.real == self.count else column < jnp.int32(self.real)


def segments(layout: MLALayout, most: int) -> tuple[Segment, ...]:
    """The latent and the rotary key cut into segments of at most ``most`` columns, the widest first."""
    found = []
    for first, width, latent in ((0, layout.rank, True), (layout.rank, layout.rope, False)):
        at = 0
        while at < width:
            rest = width - at
            count = min(most, max(_LEAST, 1 << (rest.bit_length() - 1)))
            # One padded segment rather than several that are hardly wider.
            if rest < most and rest + rest // 8 >= power_of_two(rest):
                count = max(_LEAST, power_of_two(rest))
            found.append(Segment(first + at, min(count, rest), count, latent))
            at += count
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class FloatRows:
    """Rows kept as floats.

    Attributes:
      layout: of the cache.
      rows: tokens multiplied together.
      ref: the rows.
      text: which of the batch.
    """

    layout: MLALayout
    rows: int
    ref: Any
    text: jax.Array

    def parts(self, block: jax.Array, first: jax.Array, cut: tuple[Segment, ...]) -> list[jax.Array]:
        """Tokens ``first ..`` of a block, ``[rows, count]`` of each segment; 0 behind the end."""
        token = first + triton.iota(self.rows)
        inside = None if self.layout.tokens % self.rows == 0 else (token < jnp.int32(self.layout.tokens))[:, None]
        found = []
        for each in cut:
            channel, exists = each.channels()
            mask = inside
            if exists is not None:
                mask = exists[None, :] if inside is None else inside & exists[None, :]
            found.append(triton.load(self.ref, block, self.text, token[:, None], channel[None, :], mask=mask))
        return found


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows kept as codes.

    Attributes:
      layout, side: how they are rounded and packed.
      rows: tokens unpacked together.
      codes, scale, low: references, see :class:`Codes`.
      text: which of the batch.
    """

    layout: MLALayout
    side: Side
    rows: int
    codes: Any
    scale: Any
    low: Any
    text: jax.Array

    def parts(self, block: jax.Array, first: jax.Array, cut: tuple[Segment, ...]) -> list[jax.Array]:
        """Tokens ``first ..`` of a block, float32 ``[rows, count]`` of each segment."""
        return [self._values(block, first, each) for each in cut]

    def _codes(self, block, first, each):
        channel, exists = each.channels()
        mask = None if exists is None else exists[None, :]
        packing, code = self.layout.packing, None
        tile = lax.div(first, jnp.int32(packing.tile))
        within = lax.rem(first, jnp.int32(packing.tile)) + triton.iota(self.rows)
        for width, offset, word in packing.planes:
            tall = jnp.int32(packing.tile * width // 32)
            at = tile * jnp.int32(packing.words) + jnp.int32(word) + lax.rem(within, tall)
            words = triton.load(self.codes, block, self.text, at[:, None], channel[None, :], mask=mask)
            shift = (lax.div(within, tall) * jnp.int32(width)).astype(jnp.uint32)
            part = (words >> shift[:, None]) & jnp.uint32(2**width - 1)
            part = part << jnp.uint32(offset) if offset else part
            code = part if code is None else code | part
        assert code is not None  # every width has a plane
        return code

    def _values(self, block, first, each):
        shape, where, mask = self._groups(first, each)

        def load(ref):
            return triton.load(ref, block, self.text, *where, mask=mask).astype(jnp.float32)

        code = triton.exact_float(self._codes(block, first, each)).reshape(shape)
        if self.low is None:
            value = load(self.scale) * (code - triton.exact_zero(float(2 ** (self.side.bits - 1))))
        else:
            value = load(self.low) + load(self.scale) * (code - triton.exact_zero(0.0))
        return value.reshape(self.rows, each.count)

    def _groups(self, first, each):
        """For ``rows`` tokens from ``first``: a shape, and where the scales lie that broadcast against it."""
        rows, group = self.rows, self.side.group
        token = first + triton.iota(rows)
        channel, exists = each.channels()
        mask = None if exists is None else exists[None, :]
        if self.side.axis == "token":
            if each.first // group == (each.first + each.real - 1) // group:
                one = jnp.full((1, 1), each.first // group, jnp.int32)
                return (rows, each.count), (token[:, None], one), None
            if each.first % group == 0 and each.real == each.count and each.count % group == 0:
                nth = jnp.int32(each.first // group) + triton.iota(each.count // group)
                return (rows, each.count // group, group), (token[:, None, None], nth[None, :, None]), None
            return (rows, each.count), (token[:, None], (channel // jnp.int32(group))[None, :]), mask
        if group % rows == 0:
            at = jnp.reshape(first // jnp.int32(group), (1, 1))
            return (rows, each.count), (at, channel[None, :]), mask
        if rows % group == 0:
            at = first // jnp.int32(group) + triton.iota(rows // group)
            mask = None if mask is None else mask[:, None]
            return (rows // group, group, each.count), (at[:, None, None], channel[None, None, :]), mask
        return (rows, each.count), ((token // jnp.int32(group))[:, None], channel[None, :]), mask
