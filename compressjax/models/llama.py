"""The Llama family of decoders: Llama 2/3, Mistral, Qwen2/3, SmolLM2 (Touvron et al., 2023, and successors).

Parameters, with L layers, width D, feed-forward width F, vocabulary V, H query heads, K key heads of width d; entries
in brackets exist when the config asks for them::

    {"embed": {"embedding": [V, D]},
     "blocks": {"attn_norm": {"scale": [L, D]},
                "attn": {"q": {"kernel": [L, D, H d], ("bias": [L, H d])},
                         "k": {"kernel": [L, D, K d], ("bias": [L, K d])},
                         "v": {"kernel": [L, D, K d], ("bias": [L, K d])},
                         "o": {"kernel": [L, H d, D], ("bias": [L, D])},
                         ("q_norm": {"scale": [L, d]}, "k_norm": {"scale": [L, d]})},
                "mlp_norm": {"scale": [L, D]},
                "mlp": {"gate": {"kernel": [L, D, F], ("bias": [L, F])},
                        "up": {"kernel": [L, D, F], ("bias": [L, F])},
                        "down": {"kernel": [L, F, D], ("bias": [L, D])}}},
     "final_norm": {"scale": [D]},
     ("head": {"kernel": [D, V]})}

Any kernel or embedding may be a compressed leaf. Activations have the module's ``dtype``; rotary angles, norm
statistics, attention scores, softmax and logits are float32.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from compressjax.models.attention import Past, attend, causal_seen, token_positions
from compressjax.models.blockwise import Stage
from compressjax.models.config import LlamaConfig
from compressjax.models.layers import Dense, Embedding, RMSNorm
from compressjax.models.rope import rotary_angles, rotate
from compressjax.models.stack import Advance, BlockStack, apply, check_tokens


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, up to the input of ``o``."""

    cfg: LlamaConfig

    def setup(self):
        cfg = self.cfg
        self.q = Dense(cfg.num_heads * cfg.head_dim, use_bias=cfg.qkv_bias)
        self.k = Dense(cfg.num_kv_heads * cfg.head_dim, use_bias=cfg.qkv_bias)
        self.v = Dense(cfg.num_kv_heads * cfg.head_dim, use_bias=cfg.qkv_bias)
        self.o = Dense(cfg.hidden_size, use_bias=cfg.output_bias)
        if cfg.qk_norm:
            self.q_norm = RMSNorm(cfg.norm_eps)
            self.k_norm = RMSNorm(cfg.norm_eps)

    def project(self, h: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries ``[B, T, H, d]`` and keys, and values ``[B, T, K, d]``, of ``h [B, T, D]``."""
        cfg = self.cfg
        q, k, v = (linear(h).reshape(*h.shape[:2], -1, cfg.head_dim) for linear in (self.q, self.k, self.v))
        if cfg.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = rotary_angles(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def __call__(
        self, h: jax.Array, mask: jax.Array | None, positions: jax.Array | None, past: Past | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Contexts ``[B, T, H d]`` of all heads, and the new keys and values."""
        if positions is None:
            positions = jnp.arange(h.shape[1])[None] if mask is None else token_positions(mask)
        q, k, v = self.project(h, positions)
        seen = causal_seen(h.shape[1], mask, self.cfg.sliding_window)
        return attend(q, k, v, seen, past, causal=True), (k, v)


class MLP(nn.Module):
    """SwiGLU feed-forward network (Shazeer, 2020), up to the input of ``down``."""

    cfg: LlamaConfig

    def setup(self):
        cfg = self.cfg
        self.gate = Dense(cfg.intermediate_size, use_bias=cfg.mlp_bias)
        self.up = Dense(cfg.intermediate_size, use_bias=cfg.mlp_bias)
        self.down = Dense(cfg.hidden_size, use_bias=cfg.mlp_bias)

    def __call__(self, h: jax.Array) -> jax.Array:
        """``h [B, T, D] -> silu(gate(h)) * up(h) [B, T, F]``."""
        return jax.nn.silu(self.gate(h)) * self.up(h)


class Block(nn.Module):
    """One decoder block as four stages and a finish.

    The carry holds ``"x"``, the residual stream ``[B, T, D]``, and after each stage ``"h"``, what the next weights
    read. Optional entries: ``"mask"`` bool ``[B, T]`` of real tokens, ``"positions"`` int ``[B or 1, T]``; ``"past"``,
    keys and values ``[B, S, K, d]`` of earlier tokens, with ``"past_seen"`` bool ``[B, T, S]``; and ``"keep_kv"`` to
    find the new keys and values under ``"kv"``.
    """

    cfg: LlamaConfig

    def setup(self):
        self.attn_norm = RMSNorm(self.cfg.norm_eps)
        self.attn = Attention(self.cfg)
        self.mlp_norm = RMSNorm(self.cfg.norm_eps)
        self.mlp = MLP(self.cfg)

    def attention_in(self, carry: dict) -> dict:
        """Input of q, k, v."""
        return carry | {"h": self.attn_norm(carry["x"])}

    def attention_out(self, carry: dict) -> dict:
        """Input of o: the heads' contexts."""
        past = None
        if "past" in carry:
            k, v = carry["past"]
            past = Past(k, v, carry["past_seen"])
        context, kv = self.attn(carry["h"], carry.get("mask"), carry.get("positions"), past)
        return carry | {"h": context} | ({"kv": kv} if "keep_kv" in carry else {})

    def mlp_in(self, carry: dict) -> dict:
        """Input of gate and up."""
        x = carry["x"] + self.attn.o(carry["h"])
        return carry | {"x": x, "h": self.mlp_norm(x)}

    def mlp_act(self, carry: dict) -> dict:
        """Input of down."""
        return carry | {"h": self.mlp(carry["h"])}

    def finish(self, carry: dict) -> jax.Array:
        """Residual stream after the block, ``[B, T, D]``."""
        return carry["x"] + self.mlp.down(carry["h"])

    def __call__(self, carry: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """The residual stream after the block, and its new keys and values if asked for."""
        carry = self.mlp_act(self.mlp_in(self.attention_out(self.attention_in(carry))))
        return self.finish(carry), carry.get("kv")


class Llama(nn.Module):
    """Decoder-only language model; see the module's docstring for the parameters.

    Attributes:
      cfg: sizes and switches.
      dtype: of activations, float32 or bfloat16.
    """

    cfg: LlamaConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        cfg = self.cfg
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, dtype=self.dtype)
        self.blocks = BlockStack(functools.partial(Block, cfg, parent=None), cfg.num_layers)
        self.final_norm = RMSNorm(cfg.norm_eps, dtype=jnp.float32)
        if not cfg.tie_embeddings:
            self.head = Dense(cfg.vocab_size)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """``tokens int [B, T] -> [B, T, D]``."""
        check_tokens(tokens, None, self.cfg.max_positions)
        return self.embed(tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Residual stream ``[B, T, D]`` after the last block to float32 logits ``[B, T, V]``."""
        normed = self.final_norm(hidden)
        return self.embed.attend(normed) if self.cfg.tie_embeddings else self.head(normed)

    def hidden(
        self,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        past: Past | None = None,
        keep_kv: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Residual stream after the last block, for callers that take the logits in slices.

        Args:
          tokens: int ``[B, T]``.
          positions: int ``[B or 1, T]`` rotary positions; by default real tokens are numbered from 0 in each row.
          mask: bool ``[B, T]``, the real tokens; padding may be on either side. None when all are real.
          past: stacked keys and values ``[L, B, S, K, d]`` of earlier tokens, with ``seen`` bool ``[B, T, S]`` alike
            for all layers.
          keep_kv: also return the new keys and values.

        Returns:
          ``[B, T, D]`` in ``dtype``, and None or keys and values ``[L, B, T, K, d]``.

        Raises:
          ValueError, TypeError: as `check_tokens`.
        """
        check_tokens(tokens, mask, self.cfg.max_positions)
        carry = {"mask": mask, "positions": positions} | ({"keep_kv": None} if keep_kv else {})
        if past is None:
            return self.blocks(self.embed(tokens), carry)
        return self.blocks(self.embed(tokens), carry | {"past_seen": past.seen}, {"past": (past.k, past.v)})

    def __call__(
        self, tokens: jax.Array, *, positions: jax.Array | None = None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits of the next token at every position; arguments and errors as `hidden`.

        Returns:
          float32 ``[B, T, V]``; rows at padding hold no meaning.
        """
        hidden, _ = self.hidden(tokens, positions=positions, mask=mask)
        return self.logits(hidden)


@dataclasses.dataclass(frozen=True)
class LlamaBlocks:
    """The `Blockwise` view of `Llama`.

    Attributes:
      cfg: sizes and switches.
      dtype: of activations.
    """

    cfg: LlamaConfig
    dtype: DTypeLike = jnp.float32

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.cfg.num_layers

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The four inputs of a block, in order."""
        block = Block(self.cfg)
        return (
            Stage(("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), Advance(block, "attention_in")),
            Stage(("attn/o/kernel",), Advance(block, "attention_out")),
            Stage(("mlp/gate/kernel", "mlp/up/kernel"), Advance(block, "mlp_in")),
            Stage(("mlp/down/kernel",), Advance(block, "mlp_act")),
        )

    def embed(self, rest: Any, tokens: jax.Array) -> jax.Array:
        """``tokens int [B, T] -> [B, T, D]``."""
        return apply(Llama(self.cfg, self.dtype), rest, tokens, method="lookup")

    def finish(self, block_params: Any, carry: dict) -> jax.Array:
        """Residual stream after a block."""
        return apply(Block(self.cfg), block_params, carry, method="finish")

    def head(self, rest: Any, hidden: jax.Array) -> jax.Array:
        """Residual stream ``[B, T, D]`` to float32 logits ``[B, T, V]``."""
        return apply(Llama(self.cfg, self.dtype), rest, hidden, method="logits")
