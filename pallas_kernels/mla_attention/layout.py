"""What is fixed about a cache of latents, and the check that arrays fit it.

Letters: C blocks of tokens, B batch, H query heads, n tokens of a block, W words of one, r width of the latent and p of
the rotary key. A token is one row of r + p channels for all heads: its latent, which is also its value, and its rotary
key.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.kv_attention.layout import QUERIES, Codes, Side
from pallas_kernels.packing import Packing

_OP = "mla_attention"
_MOST_ENTRIES = 2**31

Latents = jax.Array | Codes
"""Floats ``[C, B, n, r + p]``; or codes uint32 ``[C, B, W, r + p]`` packed along tokens, with scale and low end
``[C, B, n / group, r + p]`` for groups of tokens ("channel") or ``[C, B, n, (r + p) / group]``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLALayout:
    """Blocks of latents.

    Attributes:
      rank: r.
      rope: p; 0 for none.
      tokens: n; a multiple of ``tile`` when packed.
      side: how rows are rounded; None for floats.
      tile: tokens packed together: 32, 64, 128 or 256; not read for floats.
    """

    rank: int
    rope: int
    tokens: int
    side: Side | None = None
    tile: int = 32

    def __post_init__(self):
        for field, least in (("rank", 1), ("rope", 0), ("tokens", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{_OP}: {field} must be at least {least}, got {getattr(self, field)}")
        if self.side is None:
            return
        if self.side.width != self.width:
            raise ValueError(f"{_OP}: side.width must be rank + rope = {self.width}, got {self.side.width}")
        self.packing.check(_OP)
        if self.tokens % self.tile:
            raise ValueError(f"{_OP}: tokens must be a multiple of tile={self.tile}, got {self.tokens}")
        if self.side.axis == "channel" and self.tokens % self.side.group:
            raise ValueError(f"{_OP}: group must divide the {self.tokens} tokens of a block, got {self.side.group}")

    @property
    def width(self) -> int:
        """Channels of a row."""
        return self.rank + self.rope

    @property
    def packing(self) -> Packing:
        """How the codes of a block are packed along its tokens."""
        assert self.side is not None  # asked for packed rows only
        return Packing(self.side.bits, self.tile, self.tokens)

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Scales of a block of one text."""
        assert self.side is not None
        if self.side.axis == "channel":
            return self.tokens // self.side.group, self.width
        return self.tokens, self.width // self.side.group


def blocks_of(latents: Latents) -> int:
    """C."""
    return (latents.codes if isinstance(latents, Codes) else latents).shape[0]


def check_arrays(
    q: jax.Array, latents: Latents, start: jax.Array, stop: jax.Array, seen: jax.Array | None, layout: MLALayout
) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if q.dtype not in QUERIES:
        raise TypeError(f"{_OP}: q must be bfloat16, float16 or float32, got {q.dtype}")
    if q.ndim != 3 or q.shape[2] != layout.width:
        raise ValueError(f"{_OP}: q must be [B, H, r + p] with r + p = {layout.width}, got shape {q.shape}")
    batch = q.shape[0]
    if isinstance(latents, Codes) != (layout.side is not None):
        kind = "packed" if isinstance(latents, Codes) else "floats"
        raise ValueError(f"{_OP}: latents are {kind}, which does not go with side={layout.side}")
    if isinstance(latents, Codes):
        blocks = _check_codes(latents, batch, layout)
    else:
        if latents.dtype not in QUERIES:
            raise TypeError(f"{_OP}: latents must be bfloat16, float16 or float32, got {latents.dtype}")
        blocks = latents.shape[0] if latents.ndim else 0
        _check_shape("latents", latents, (blocks, batch, layout.tokens, layout.width))
        _check_size("latents", latents)
    for name, array in (("start", start), ("stop", stop)):
        if array.dtype != jnp.int32 or array.shape != (batch,):
            raise ValueError(f"{_OP}: {name} must be int32 [{batch}], got {array.dtype} {list(array.shape)}")
    if seen is not None:
        if seen.dtype != jnp.uint8:
            raise TypeError(f"{_OP}: seen must be uint8, got {seen.dtype}")
        _check_shape("seen", seen, (blocks, batch, layout.tokens))


def _check_codes(latents: Codes, batch: int, layout: MLALayout) -> int:
    assert layout.side is not None  # the caller saw to it
    packing, codes = layout.packing, latents.codes
    if codes.dtype != jnp.uint32:
        raise TypeError(f"{_OP}: codes must be uint32 words, got {codes.dtype}")
    blocks = codes.shape[0] if codes.ndim else 0
    _check_shape("codes", codes, (blocks, batch, packing.tiles * packing.words, layout.width))
    _check_size("codes", codes)
    if (latents.low is None) != layout.side.sym:
        got = "missing" if latents.low is None else "given"
        raise ValueError(f"{_OP}: sym={layout.side.sym} does not go with low {got}")
    for name, array in (("scale", latents.scale), ("low", latents.low)):
        if array is not None:
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise TypeError(f"{_OP}: {name} must be floating point, got {array.dtype}")
            _check_shape(name, array, (blocks, batch, *layout.scale_shape))
    return blocks


def _check_shape(name: str, array: jax.Array, wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise ValueError(f"{_OP}: {name} must have shape {wanted}, got {array.shape}")


def _check_size(name: str, array: jax.Array) -> None:
    if array.size >= _MOST_ENTRIES:
        raise ValueError(f"{_OP}: {name} must be fewer than 2**31 entries, got {array.size}")
