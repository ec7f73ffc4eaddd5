"""KV4: keys and values of past tokens in 4 bits, the newest ones kept as they are.

``x ~ low + scale * code`` in groups. Keys have a few large channels, so a group of keys is one channel over ``group``
tokens; values have none, so a group of values is ``group`` channels of one token. A group of tokens can only be rounded
once it is full: new tokens go into a ring of ``residual`` exact slots, and a full ring is compressed at once. Attention
unpacks to floating point: it is bound by memory, not by arithmetic. Zhao et al., 2024, "COMET", arXiv 2410.12168; the
axes are selectable, for the paper does not settle them.

Letters: B batch, K key heads, H query heads, T new positions, S frozen slots, R ring slots, d head width.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from compressjax.models.attention import Past, attend
from compressjax.models.rope import rotate
from compressjax.numerics import bitpack
from compressjax.numerics.grids import stored

Axis = Literal["channel", "token"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KV4:
    """How keys and values are rounded.

    Attributes:
      bits: code width, 2 to 8; the method's is 4.
      k_axis, v_axis: "channel", one channel over ``group`` tokens; "token", ``group`` channels of one token.
      group: values that share a scale.
      residual: tokens of the ring, a multiple of ``group`` and of 32.
      sym: codes around zero without a stored offset.
      pre_rope: keys are stored before their rotation and rotated when attention reads them.
    """

    bits: int = 4
    k_axis: Axis = "channel"
    v_axis: Axis = "token"
    group: int = 64
    residual: int = 64
    sym: bool = False
    pre_rope: bool = False

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise ValueError(f"KV4.bits must be in 2..8, got {self.bits}")
        for field in ("k_axis", "v_axis"):
            if getattr(self, field) not in ("channel", "token"):
                raise ValueError(f"KV4.{field} must be 'channel' or 'token', got {getattr(self, field)!r}")
        if self.group < 2:
            raise ValueError(f"KV4.group must be >= 2, got {self.group}")
        if self.residual < 32 or self.residual % 32 or self.residual % self.group:
            raise ValueError(
                f"KV4.residual must be a positive multiple of 32 and of group={self.group}, got {self.residual}"
            )


class Packed(NamedTuple):
    """Rounded keys or values of S tokens.

    Attributes:
      codes: uint32 ``[B, K, S * bits / 32, d]``, see ``numerics.bitpack``, no tile across two rings.
      scale: float16 ``[B, K, S / group, d]`` ("channel") or ``[B, K, S, d / group]`` ("token").
      low: the same, value of code 0; None when symmetric.
    """

    codes: jax.Array
    scale: jax.Array
    low: jax.Array | None


class KV4Cache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
      k, v: the frozen tokens.
      k_hot, v_hot: the ring, ``[B, R, K, d]`` in the dtype of the activations.
      frozen: int32, tokens compressed so far, a multiple of R.
      hot: int32, tokens in the ring, less than R.
    """

    k: Packed
    v: Packed
    k_hot: jax.Array
    v_hot: jax.Array
    frozen: jax.Array
    hot: jax.Array


def _check_width(cfg: KV4, head_dim: int) -> None:
    if "token" in (cfg.k_axis, cfg.v_axis) and head_dim % cfg.group:
        raise ValueError(f"KV4.group={cfg.group} does not divide the head width {head_dim} on the token axis")


def _tile(cfg):
    return bitpack.pack_tile(cfg.residual)


def _grouped(x, axis, group):
    """``[B, K, S, d]`` with the group's values on the last axis."""
    *lead, tokens, width = x.shape
    if axis == "token":
        return x.reshape(*lead, tokens, width // group, group)
    return jnp.swapaxes(x.reshape(*lead, tokens // group, group, width), -1, -2)


def _ungrouped(x, axis, group):
    if axis == "token":
        return x.reshape(*x.shape[:-2], x.shape[-2] * group)
    x = jnp.swapaxes(x, -1, -2)
    return x.reshape(*x.shape[:-3], x.shape[-3] * group, x.shape[-1])


def kv_quantize(x: jax.Array, axis: Axis, cfg: KV4) -> Packed:
    """Rounds keys or values group by group.

    Asymmetric: ``scale = (max - min) / (2^b - 1)``, ``code = round((x - min) / scale)``; symmetric: codes
    ``-(2^(b-1)-1) .. 2^(b-1)-1`` around zero. Scale and minimum are rounded to float16 before they are used. A group
    of equal values keeps that value.

    Args:
      x: ``[B, S, K, d]`` with S a multiple of ``cfg.residual``.
      axis: along which axis groups differ.
      cfg: the options.

    Raises:
      ValueError: when S or d does not fit.
    """
    _check_width(cfg, x.shape[3])
    if x.shape[1] % cfg.residual:
        raise ValueError(f"kv_quantize: {x.shape[1]} tokens are not a multiple of residual={cfg.residual}")
    values = _grouped(jnp.swapaxes(x.astype(jnp.float32), 1, 2), axis, cfg.group)
    if cfg.sym:
        middle = 2 ** (cfg.bits - 1)
        peak = jnp.max(jnp.abs(values), axis=-1)
        scale, low = stored(jnp.where(peak == 0, 1, peak) / (middle - 1), "float16"), None
        codes = jnp.clip(jnp.round(values / scale[..., None]), 1 - middle, middle - 1) + middle
    else:
        low, high = jnp.min(values, axis=-1), jnp.max(values, axis=-1)
        largest = jnp.float32(jnp.finfo(jnp.float16).max)
        low = jnp.clip(low, -largest, largest).astype(jnp.float16).astype(jnp.float32)
        span = jnp.maximum(high - low, 0)
        scale = stored(jnp.where(span == 0, 1, span) / (2**cfg.bits - 1), "float16")
        codes = jnp.clip(jnp.round((values - low[..., None]) / scale[..., None]), 0, 2**cfg.bits - 1)
    codes = _ungrouped(codes, axis, cfg.group)
    return Packed(
        bitpack.pack(codes, cfg.bits, _tile(cfg)),
        scale.astype(jnp.float16),
        None if low is None else low.astype(jnp.float16),
    )


def kv_dequantize(packed: Packed, axis: Axis, cfg: KV4, dtype=jnp.bfloat16) -> jax.Array:
    """Values of a :class:`Packed`, ``[B, S, K, d]`` in ``dtype``."""
    tokens = packed.codes.shape[-2] * 32 // cfg.bits
    codes = bitpack.unpack(packed.codes, cfg.bits, _tile(cfg), tokens).astype(jnp.float32)
    scale = packed.scale.astype(jnp.float32)[..., None]
    if packed.low is None:
        values = scale * (_grouped(codes, axis, cfg.group) - 2 ** (cfg.bits - 1))
    else:
        values = packed.low.astype(jnp.float32)[..., None] + scale * _grouped(codes, axis, cfg.group)
    return jnp.swapaxes(_ungrouped(values, axis, cfg.group), 1, 2).astype(dtype)


def round_trip(x: jax.Array, axis: Axis, cfg: KV4) -> jax.Array:
    """What is left of ``x [B, S, K, d]`` after rounding, float32."""
    return kv_dequantize(kv_quantize(x, axis, cfg), axis, cfg, jnp.float32)


def init(cfg: KV4, *, batch: int, kv_heads: int, head_dim: int, max_len: int, dtype=jnp.bfloat16) -> KV4Cache:
    """An empty cache for at least ``max_len`` tokens.

    Raises:
      ValueError: for sizes that are not positive or a head width that ``cfg.group`` does not divide.
    """
    for name, value in (("batch", batch), ("kv_heads", kv_heads), ("head_dim", head_dim), ("max_len", max_len)):
        if value < 1:
            raise ValueError(f"KV4 cache: {name} must be >= 1, got {value}")
    _check_width(cfg, head_dim)
    slots = max(1, max_len // cfg.residual) * cfg.residual
    tokens = jax.ShapeDtypeStruct((batch, slots, kv_heads, head_dim), dtype)

    def empty(axis: Axis) -> Packed:
        shapes = jax.eval_shape(lambda x: kv_quantize(x, axis, cfg), tokens)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    ring = jnp.zeros((batch, cfg.residual, kv_heads, head_dim), dtype)
    return KV4Cache(empty(cfg.k_axis), empty(cfg.v_axis), ring, ring, jnp.int32(0), jnp.int32(0))


def prefill(cache: KV4Cache, k: jax.Array, v: jax.Array, cfg: KV4) -> KV4Cache:
    """An empty cache filled with ``k, v [B, T, K, d]``: whole rings compressed, the rest exact.

    Raises:
      ValueError: when T exceeds what the cache can hold.
    """
    slots = cache.k.codes.shape[-2] * 32 // cfg.bits
    tokens = k.shape[1]
    whole = tokens // cfg.residual * cfg.residual
    if whole > slots:
        raise ValueError(f"KV4 cache: {tokens} tokens do not fit {slots} slots and a ring of {cfg.residual}")
    rest = tokens - whole

    def frozen(held: Packed, x: jax.Array, axis: Axis) -> Packed:
        new = kv_quantize(x[:, :whole], axis, cfg)
        return jax.tree.map(lambda old, part: old.at[:, :, : part.shape[2]].set(part), held, new)

    def ring(old: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, whole:].astype(old.dtype), ((0, 0), (0, cfg.residual - rest), (0, 0), (0, 0)))

    return KV4Cache(
        k=frozen(cache.k, k, cfg.k_axis),
        v=frozen(cache.v, v, cfg.v_axis),
        k_hot=ring(cache.k_hot, k),
        v_hot=ring(cache.v_hot, v),
        frozen=jnp.int32(whole),
        hot=jnp.int32(rest),
    )


def write(cache: KV4Cache, k: jax.Array, v: jax.Array) -> KV4Cache:
    """Puts one token ``k, v [B, 1, K, d]`` into the ring; the caller flushes a ring that is full."""
    hot = [
        jax.lax.dynamic_update_slice_in_dim(ring, x.astype(ring.dtype), cache.hot, axis=1)
        for ring, x in ((cache.k_hot, k), (cache.v_hot, v))
    ]
    return cache._replace(k_hot=hot[0], v_hot=hot[1], hot=cache.hot + 1)


def flush(cache: KV4Cache, cfg: KV4) -> KV4Cache:
    """Compresses a full ring into the frozen part and empties it.

    Past the cache's capacity nothing is dropped in silence: the scales turn to NaN, and so does what attention returns.
    """
    fits = cache.frozen + cfg.residual <= cache.k.codes.shape[-2] * 32 // cfg.bits

    def insert(held, ring, axis):
        def place(old, new):
            # Arrays lead with different numbers of rows per token; all are in proportion to the slots.
            at = cache.frozen // cfg.residual * new.shape[2]
            if jnp.issubdtype(new.dtype, jnp.floating):
                new = jnp.where(fits, new, jnp.asarray(jnp.nan, new.dtype))
            return jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=2)

        return jax.tree.map(place, held, kv_quantize(ring, axis, cfg))

    return cache._replace(
        k=insert(cache.k, cache.k_hot, cfg.k_axis),
        v=insert(cache.v, cache.v_hot, cfg.v_axis),
        frozen=cache.frozen + cfg.residual,
        hot=jnp.int32(0),
    )


def append(cache: KV4Cache, k: jax.Array, v: jax.Array, cfg: KV4) -> KV4Cache:
    """:func:`write`, and :func:`flush` when that filled the ring.

    The condition costs time at every step; a decoding loop that counts its steps calls the two itself.
    """
    cache = write(cache, k, v)
    return jax.lax.cond(cache.hot == cfg.residual, lambda c: flush(c, cfg), lambda c: c, cache)


def kv4_attention(
    q: jax.Array, cache: KV4Cache, cfg: KV4, rotary: tuple[jax.Array, jax.Array] | None = None
) -> jax.Array:
    """Attention of the newest position to everything in the cache, itself included.

    Args:
      q: ``[B, 1, H, d]``, rotated.
      cache: with the newest token written.
      cfg: the options.
      rotary: cosine and sine of positions ``0 .. S + R - 1``, ``[1, S + R, d / 2]``; for ``pre_rope`` only.

    Returns:
      ``[B, 1, H * d]`` in the dtype of ``q``.

    Raises:
      ValueError: when ``rotary`` and ``cfg.pre_rope`` do not agree.
    """
    if (rotary is None) == cfg.pre_rope:
        raise ValueError(f"rotary must be given exactly when KV4.pre_rope is set, which is {cfg.pre_rope}")
    k, v = kv_dequantize(cache.k, cfg.k_axis, cfg, q.dtype), kv_dequantize(cache.v, cfg.v_axis, cfg, q.dtype)
    k_hot, v_hot = cache.k_hot.astype(q.dtype), cache.v_hot.astype(q.dtype)
    slots, ring = k.shape[1], k_hot.shape[1]
    if rotary is not None:
        cos, sin = rotary
        k = rotate(k, cos[:, :slots], sin[:, :slots])
        at = cache.frozen
        k_hot = rotate(k_hot, *(jax.lax.dynamic_slice_in_dim(a, at, ring, axis=1) for a in (cos, sin)))
    seen = (jnp.arange(ring) < cache.hot)[None, None, :]
    past = Past(k, v, (jnp.arange(slots) < cache.frozen)[None, None, :])
    return attend(q, k_hot, v_hot, seen, past)


def attention_as_decoded(q: jax.Array, k: jax.Array, v: jax.Array, cfg: KV4) -> jax.Array:
    """Causal attention of a whole text as it would come out token by token with this cache, in one pass.

    Position ``t`` sees tokens before ``floor((t + 1) / R) R`` rounded and later ones exact: the ring is compressed as
    soon as it is full, before the token that filled it attends.

    Args:
      q: ``[B, T, H, d]``, rotated.
      k, v: ``[B, T, K, d]``, keys rotated: with ``pre_rope`` rotation comes after rounding and this form has no use.

    Returns:
      ``[B, T, H * d]``.

    Raises:
      ValueError: with ``pre_rope``.
    """
    if cfg.pre_rope:
        raise ValueError("attention_as_decoded takes rotated keys: KV4.pre_rope must be False")
    tokens = k.shape[1]
    whole = tokens // cfg.residual * cfg.residual
    query, key = jnp.arange(tokens)[:, None], jnp.arange(tokens)[None, :]
    frozen = (query + 1) // cfg.residual * cfg.residual
    exact = (key <= query) & (key >= frozen)
    if not whole:
        return attend(q, k, v, exact[None])
    past = Past(
        k=round_trip(k[:, :whole], cfg.k_axis, cfg).astype(k.dtype),
        v=round_trip(v[:, :whole], cfg.v_axis, cfg).astype(v.dtype),
        seen=(key[:, :whole] < frozen)[None],
    )
    return attend(q, k, v, exact[None], past)
