"""What is fixed about a block that is appended, its arithmetic, and the check that arrays fit.

Groups of values run along the tokens of a channel ("channel") or along the channels of a token ("token"), see
:class:`pallas_kernels.kv_attention.Side`. With ``t = 2^bits - 1``, or ``h = 2^(bits-1)`` for codes around a middle:

    kind        low    scale                    code
    with low    min    (max - min) (1 / t)      round((x - low) / scale) clipped to 0 .. t
    sym         -      max |x| (1 / (h - 1))    round(x / scale) clipped to 1 - h .. h - 1, plus h

Scale and low end are rounded to their dtype, which they saturate, before they are used; a group of one value has the
scale of a range of 1. Tokens that are not kept widen no range and are rounded nevertheless; a group without any has the
low end 0. A group that holds NaN has NaN for a scale and codes of 0.

Letters: C blocks of the cache, B batch, K key heads, n tokens of a block, W words of one.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import Codes, Side
from pallas_kernels.packing import Packing

_OP = "kv_append"
_MOST_ENTRIES = 2**31
_MOST_GROUP = 1024
FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
SCALES = (jnp.float16, jnp.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppendLayout:
    """A block of packed tokens.

    Attributes:
      tokens: n, a multiple of ``tile``.
      tile: tokens packed together: 32, 64, 128 or 256.
      side: how they are rounded; at most 1024 values to a group, and with groups of tokens a size that shares with the
        tile's runs what :attr:`unit` needs: any multiple of 8 does.
    """

    tokens: int
    tile: int
    side: Side

    def __post_init__(self):
        self.packing.check(_OP)
        side = self.side
        if self.tokens < 1 or self.tokens % self.tile:
            raise ValueError(f"{_OP}: tokens must be a positive multiple of tile={self.tile}, got {self.tokens}")
        if side.sym and side.bits == 1:
            raise ValueError(f"{_OP}: codes around a middle take at least 2 bits, got 1")
        if side.group > _MOST_GROUP:
            raise ValueError(f"{_OP}: group must be at most {_MOST_GROUP}, got {side.group}")
        if side.axis == "channel" and self.tokens % side.group:
            raise ValueError(f"{_OP}: group must divide the {self.tokens} tokens of a block, got {side.group}")
        if self.unit is None:
            raise ValueError(f"{_OP}: groups of {side.group} tokens cut runs of {self.tile // 32}")

    @property
    def packing(self) -> Packing:
        """How the codes of a block are packed along its tokens."""
        return Packing(self.side.bits, self.tile, self.tokens)

    @property
    def unit(self) -> int | None:
        """Bits of a field that is written at a time: the largest power of two that fits all planes and all groups.

        The tokens of such a field, ``tile * unit / 32`` of them, then lie in one group or are whole groups. None when
        no width does.
        """
        group = self.side.group
        for width in (8, 4, 2, 1):
            run = self.tile * width // 32
            fits = self.side.axis == "token" or group % run == 0 or run % group == 0
            if fits and width <= min(plane for plane, _, _ in self.packing.planes):
                return width
        return None

    @property
    def span(self) -> int:
        """Tokens of whole tiles and whole groups."""
        return math.lcm(self.tile, self.side.group) if self.side.axis == "channel" else self.tile

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Scales of a block of one head."""
        if self.side.axis == "channel":
            return self.tokens // self.side.group, self.side.width
        return self.tokens, self.side.width // self.side.group

    def block_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Words and scales of a block of one head."""
        return (self.packing.tiles * self.packing.words, self.side.width), self.scale_shape


def check_arrays(held: Codes, x: jax.Array, at: jax.Array, keep: jax.Array | None, layout: AppendLayout) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{_OP}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim != 4 or x.shape[2:] != (layout.tokens, layout.side.width):
        raise ValueError(f"{_OP}: x must be [B, K, {layout.tokens}, {layout.side.width}], got shape {x.shape}")
    batch, heads = x.shape[:2]
    if held.codes.dtype != jnp.uint32:
        raise TypeError(f"{_OP}: codes must be uint32 words, got {held.codes.dtype}")
    blocks = held.codes.shape[0] if held.codes.ndim else 0
    words, scales = layout.block_shapes()
    _check_shape("codes", held.codes, (blocks, batch, heads, *words))
    if blocks < 1:
        raise ValueError(f"{_OP}: the cache must have room for a block, got codes of shape {held.codes.shape}")
    if max(held.codes.size, x.size) >= _MOST_ENTRIES:
        raise ValueError(f"{_OP}: codes must be fewer than 2**31 words, got {held.codes.size}")
    if (held.low is None) != layout.side.sym:
        got = "missing" if held.low is None else "given"
        raise ValueError(f"{_OP}: sym={layout.side.sym} does not go with low {got}")
    for name, array in (("scale", held.scale), ("low", held.low)):
        if array is not None:
            if array.dtype not in SCALES or array.dtype != held.scale.dtype:
                raise TypeError(f"{_OP}: scale and low must both be float16 or bfloat16, got {name} of {array.dtype}")
            _check_shape(name, array, (blocks, batch, heads, *scales))
    if at.dtype != jnp.int32 or at.shape != ():
        raise ValueError(f"{_OP}: at must be an int32 scalar, got {at.dtype} {list(at.shape)}")
    if keep is not None:
        if keep.dtype != jnp.uint8:
            raise TypeError(f"{_OP}: keep must be uint8, got {keep.dtype}")
        _check_shape("keep", keep, (batch, layout.tokens))


def _check_shape(name: str, array: jax.Array, wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise ValueError(f"{_OP}: {name} must have shape {wanted}, got {array.shape}")
