"""KV4: keys and values of past tokens in 4 bits, the newest ones kept as they are.

``x ~ low + scale * code`` in groups. Keys have a few large channels, so a group of keys is one channel over ``group``
tokens; values have none, so a group of values is ``group`` channels of one token. A group of tokens can only be rounded
once it is full: new tokens go into a ring of ``residual`` exact slots, and a full ring is compressed at once. Attention
unpacks to floating point: it is bound by memory, not by arithmetic. Zhao et al., 2024, "COMET", arXiv 2410.12168; the
axes are selectable, for the paper does not settle them.

Letters: B batch, K key heads, H query heads, T new positions, R ring slots, d head width.
"""

# Methods of the protocol are documented in it.
# ruff: noqa: D102

import dataclasses

import jax
import jax.numpy as jnp

from compressjax.kvcache.packed import Axis, Packed, pack_groups, unpack_groups
from compressjax.kvcache.protocol import KVSpec
from compressjax.kvcache.rounded import Format, RoundedCodec, check_ring, check_sinks
from compressjax.models.attention import Past, attend
from compressjax.numerics import bitpack


@dataclasses.dataclass(frozen=True, kw_only=True)
class KV4(RoundedCodec):
    """How keys and values are rounded.

    Attributes:
      bits: code width, 2 to 8; the method's is 4.
      k_axis, v_axis: "channel", one channel over ``group`` tokens; "token", ``group`` channels of one token.
      group: values that share a scale.
      residual: tokens of the ring, a multiple of ``group`` and of 32.
      sym: codes around zero without a stored offset.
      pre_rope: keys are stored before their rotation and rotated when attention reads them.
      sinks: first tokens kept exactly; the paper keeps none.
    """

    bits: int = 4
    k_axis: Axis = "channel"
    v_axis: Axis = "token"
    group: int = 64
    residual: int = 64
    sym: bool = False
    pre_rope: bool = False
    sinks: int = 0

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise ValueError(f"KV4.bits must be in 2..8, got {self.bits}")
        for field in ("k_axis", "v_axis"):
            if getattr(self, field) not in ("channel", "token"):
                raise ValueError(f"KV4.{field} must be 'channel' or 'token', got {getattr(self, field)!r}")
        if self.group < 2:
            raise ValueError(f"KV4.group must be >= 2, got {self.group}")
        check_ring("KV4", self.residual, self.group)
        check_sinks("KV4", self.sinks)

    @property
    def chunk(self):
        return self.residual

    @property
    def exact_sinks(self):
        return self.sinks

    @property
    def turned_back(self):
        return self.pre_rope

    def formats(self, spec: KVSpec) -> tuple[Format, Format]:
        return (
            Format(self.k_axis, self.bits, self.group, self.sym),
            Format(self.v_axis, self.bits, self.group, self.sym),
        )


def kv_quantize(x: jax.Array, axis: Axis, cfg: KV4) -> Packed:
    """Rounds keys or values group by group, see `pack_groups`.

    Args:
      x: ``[B, S, K, d]`` with S a multiple of ``cfg.residual``.
      axis: along which axis groups differ.
      cfg: the options.

    Raises:
      ValueError: when S or d does not fit.
    """
    if axis == "token" and x.shape[3] % cfg.group:
        raise ValueError(f"KV4.group={cfg.group} does not divide the head width {x.shape[3]} on the token axis")
    if x.shape[1] % cfg.residual:
        raise ValueError(f"kv_quantize: {x.shape[1]} tokens are not a multiple of residual={cfg.residual}")
    tile = bitpack.pack_tile(cfg.residual)  # no tile across two rings, so that rings can be packed apart
    return pack_groups(jnp.swapaxes(x, 1, 2), axis, bits=cfg.bits, group=cfg.group, sym=cfg.sym, tile=tile)


def kv_dequantize(packed: Packed, axis: Axis, cfg: KV4, dtype=jnp.bfloat16) -> jax.Array:
    """Values of a `Packed` made by `kv_quantize`, ``[B, S, K, d]`` in ``dtype``."""
    values = unpack_groups(packed, axis, bits=cfg.bits, tile=bitpack.pack_tile(cfg.residual))
    return jnp.swapaxes(values, 1, 2).astype(dtype)


def round_trip(x: jax.Array, axis: Axis, cfg: KV4) -> jax.Array:
    """What is left of ``x [B, S, K, d]`` after rounding, float32."""
    return kv_dequantize(kv_quantize(x, axis, cfg), axis, cfg, jnp.float32)


def attention_as_decoded(q: jax.Array, k: jax.Array, v: jax.Array, cfg: KV4) -> jax.Array:
    """Causal attention of a whole text as it would come out token by token with this cache, in one pass.

    Position ``t`` sees tokens before ``floor((t + 1) / R) R`` rounded and later ones exact: the ring is taken to be
    compressed as soon as it is full, before the token that filled it attends.

    Args:
      q: ``[B, T, H, d]``, rotated.
      k, v: ``[B, T, K, d]``, keys rotated: with ``pre_rope`` rotation comes after rounding and this form has no use.
      cfg: the options.

    Returns:
      ``[B, T, H * d]``.

    Raises:
      ValueError: with ``pre_rope`` or sinks.
    """
    if cfg.pre_rope or cfg.sinks:
        raise ValueError("attention_as_decoded takes rotated keys and no sinks: KV4.pre_rope and KV4.sinks must be off")
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
