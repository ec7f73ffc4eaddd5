"""What is fixed about packed keys and values, and the check that arrays fit it.

Letters: C blocks of tokens, B batch, K key heads, G query heads of a key head, n tokens of a block, W words of one, d
and e widths of keys and values, r rank.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing

Axis = Literal["channel", "token"]
QUERIES = (jnp.bfloat16, jnp.float16, jnp.float32)
UNSEEN = -1e30
"""Score of what is not seen; finite, so that nothing seen gives no NaN."""
_OP = "kv_attention"
_MOST_ENTRIES = 2**31


class Codes(NamedTuple):
    """Rounded keys or values, ``low + scale * code``.

    Attributes:
      codes: uint32 ``[C, B, K, W, width]``, packed along tokens.
      scale: float ``[C, B, K, n / group, width]`` for groups of tokens ("channel"), or ``[C, B, K, n, width / group]``.
      low: the same; None when codes are around ``2**(bits-1)``.
    """

    codes: jax.Array
    scale: jax.Array
    low: jax.Array | None


class Fit(NamedTuple):
    """What is added to rounded keys or values, ``a b^T``: float ``[C, B, K, n, r]`` and ``[C, B, K, width, r]``."""

    a: jax.Array
    b: jax.Array


class Past(NamedTuple):
    """Compressed tokens.

    Attributes:
      k, v: rounded keys and values.
      k_fit, v_fit: low-rank parts; None for none.
    """

    k: Codes
    v: Codes
    k_fit: Fit | None = None
    v_fit: Fit | None = None


class Softmax(NamedTuple):
    """An unnormalised softmax average over the tokens seen.

    Attributes:
      acc: float32 ``[B, K, G, e]``, ``sum_s exp(score_s - m) v_s``.
      m: float32 ``[B, K, G]``, the largest score; -1e30 where nothing is seen, and then ``acc`` and ``l`` are 0.
      l: float32 ``[B, K, G]``, ``sum_s exp(score_s - m)``.
      scores: float32 ``[C, B, K, G, n]``, of tokens that are seen, and anything for others; None unless asked for.
    """

    acc: jax.Array
    m: jax.Array
    l: jax.Array  # noqa: E741
    scores: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """How keys, or values, are rounded.

    Attributes:
      width: channels of a head.
      bits: code width, 1 to 8.
      group: values that share a scale: tokens in a channel ("channel") or channels of a token ("token"); whole groups.
      axis: along which axis groups differ.
      sym: codes around ``2**(bits-1)``, without a low end.
    """

    width: int
    bits: int
    group: int
    axis: Axis
    sym: bool = False

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"{_OP}: width must be at least 1, got {self.width}")
        if self.axis not in ("channel", "token"):
            raise ValueError(f"{_OP}: axis must be 'channel' or 'token', got {self.axis!r}")
        if self.group < 1 or (self.axis == "token" and self.width % self.group):
            raise ValueError(f"{_OP}: group must divide the width {self.width} of a token, got {self.group}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVLayout:
    """Blocks of packed tokens.

    Attributes:
      tokens: n, a multiple of ``tile``.
      tile: tokens packed together: 32, 64, 128 or 256.
      key, value: how each is rounded.
    """

    tokens: int
    tile: int
    key: Side
    value: Side

    def __post_init__(self):
        for side in (self.key, self.value):
            self.packing(side).check(_OP)
            if side.axis == "channel" and self.tokens % side.group:
                raise ValueError(f"{_OP}: group must divide the {self.tokens} tokens of a block, got {side.group}")
        if self.tokens < 1 or self.tokens % self.tile:
            raise ValueError(f"{_OP}: tokens must be a positive multiple of tile={self.tile}, got {self.tokens}")

    def packing(self, side: Side) -> Packing:
        """How the codes of a block are packed along its tokens."""
        return Packing(side.bits, self.tile, self.tokens)

    @property
    def run(self) -> int:
        """Tokens of a tile that one shift of the widest words gives, of keys or of values."""
        return max(self.packing(side).run for side in (self.key, self.value))

    def scale_shape(self, side: Side) -> tuple[int, int]:
        """Scales of a block of one head."""
        if side.axis == "channel":
            return self.tokens // side.group, side.width
        return self.tokens, side.width // side.group


def check_arrays(
    q: jax.Array,
    past: Past,
    start: jax.Array,
    stop: jax.Array,
    seen: jax.Array | None,
    bias: jax.Array | None,
    layout: KVLayout,
) -> None:
    """Raises TypeError or ValueError that names the array, what it is and what it must be."""
    if q.dtype not in QUERIES:
        raise TypeError(f"{_OP}: q must be bfloat16, float16 or float32, got {q.dtype}")
    if q.ndim != 4 or q.shape[3] != layout.key.width:
        raise ValueError(f"{_OP}: q must be [B, K, G, d] with d = {layout.key.width}, got shape {q.shape}")
    batch, heads = q.shape[:2]
    if past.k.codes.ndim != 5:
        raise ValueError(f"{_OP}: codes of k must be [C, B, K, W, width], got shape {past.k.codes.shape}")
    lead = (past.k.codes.shape[0], batch, heads)
    sides = (("k", layout.key, past.k, past.k_fit), ("v", layout.value, past.v, past.v_fit))
    for name, side, held, fit in sides:
        packing = layout.packing(side)
        wanted = (*lead, packing.tiles * packing.words, side.width)
        if held.codes.dtype != jnp.uint32:
            raise TypeError(f"{_OP}: codes of {name} must be uint32 words, got {held.codes.dtype}")
        _check_shape(f"codes of {name}", held.codes, wanted)
        if held.codes.size >= _MOST_ENTRIES:
            raise ValueError(f"{_OP}: codes of {name} must be fewer than 2**31 words, got {held.codes.size}")
        if (held.low is None) != side.sym:
            got = "missing" if held.low is None else "given"
            raise ValueError(f"{_OP}: sym={side.sym} of {name} does not go with low {got}")
        for what, array in (("scale", held.scale), ("low", held.low)):
            if array is not None:
                _check_float(f"{what} of {name}", array, (*lead, *layout.scale_shape(side)))
        if fit is not None:
            rank = fit.a.shape[-1]
            _check_float(f"a of {name}_fit", fit.a, (*lead, layout.tokens, rank))
            _check_float(f"b of {name}_fit", fit.b, (*lead, side.width, rank))
    for name, array in (("start", start), ("stop", stop)):
        if array.dtype != jnp.int32 or array.shape != (batch,):
            raise ValueError(f"{_OP}: {name} must be int32 [{batch}], got {array.dtype} {list(array.shape)}")
    if seen is not None:
        if seen.dtype != jnp.uint8:
            raise TypeError(f"{_OP}: seen must be uint8, got {seen.dtype}")
        _check_shape("seen", seen, (lead[0], batch, layout.tokens))
    if bias is not None:
        if bias.dtype != jnp.float32:
            raise TypeError(f"{_OP}: bias must be float32, got {bias.dtype}")
        _check_shape("bias", bias, (*lead, q.shape[2], layout.tokens))


def _check_shape(name: str, array: jax.Array, wanted: tuple[int, ...]) -> None:
    if array.shape != wanted:
        raise ValueError(f"{_OP}: {name} must have shape {wanted}, got {array.shape}")


def _check_float(name: str, array: jax.Array, wanted: tuple[int, ...]) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{_OP}: {name} must be floating point, got {array.dtype}")
    _check_shape(name, array, wanted)
