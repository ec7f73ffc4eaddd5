"""BERT encoders and MiniLM sentence embeddings (Devlin et al., 2019; Wang et al., 2020).

Parameters, with L layers, width D, feed-forward width F, vocabulary V, P positions and two token types::

    {"embeddings": {"word": {"embedding": [V, D]},
                    "position": {"embedding": [P, D]},
                    "token_type": {"embedding": [2, D]},
                    "norm": {"scale": [D], "bias": [D]}},
     "blocks": {"attn": {"q": {"kernel": [L, D, D], "bias": [L, D]}, "k": ..., "v": ..., "o": ...},
                "attn_norm": {"scale": [L, D], "bias": [L, D]},
                "mlp": {"up": {"kernel": [L, D, F], "bias": [L, F]}, "down": {"kernel": [L, F, D], "bias": [L, D]}},
                "mlp_norm": {"scale": [L, D], "bias": [L, D]}}}

Norms come after the residual sums; the activation is the exact (erf) GELU. BERT's pooler is not part of a sentence
embedding and has no place here.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from compressjax.models.attention import attend
from compressjax.models.blockwise import Stage
from compressjax.models.layers import Dense, Embedding, LayerNorm
from compressjax.models.stack import Advance, BlockStack, apply, check_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a BERT encoder; the defaults are all-MiniLM-L6-v2.

    Attributes:
      vocab_size, hidden_size, intermediate_size, num_layers, num_heads: widths and counts; ``num_heads`` divides
        ``hidden_size``.
      max_positions: longest sequence, in tokens.
      type_vocab_size: number of token types.
      norm_eps: epsilon of every LayerNorm.
    """

    vocab_size: int = 30522
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_layers: int = 6
    num_heads: int = 12
    max_positions: int = 512
    type_vocab_size: int = 2
    norm_eps: float = 1e-12

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.type is int and getattr(self, field.name) < 1:
                raise ValueError(f"BertConfig.{field.name} must be >= 1, got {getattr(self, field.name)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"BertConfig.num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")


class _Attention(nn.Module):
    cfg: BertConfig

    def setup(self):
        self.q, self.k, self.v, self.o = (Dense(self.cfg.hidden_size, use_bias=True) for _ in range(4))

    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        heads = (*h.shape[:2], self.cfg.num_heads, -1)
        seen = jnp.ones((1, 1, h.shape[1]), bool) if mask is None else mask[:, None, :]
        return attend(self.q(h).reshape(heads), self.k(h).reshape(heads), self.v(h).reshape(heads), seen)


class _MLP(nn.Module):
    cfg: BertConfig

    def setup(self):
        self.up = Dense(self.cfg.intermediate_size, use_bias=True)
        self.down = Dense(self.cfg.hidden_size, use_bias=True)

    def __call__(self, h: jax.Array) -> jax.Array:
        return jax.nn.gelu(self.up(h), approximate=False)


class Block(nn.Module):
    """One encoder block as four stages and a finish; ``carry["h"]`` is what the next weights read."""

    cfg: BertConfig

    def setup(self):
        self.attn = _Attention(self.cfg)
        self.attn_norm = LayerNorm(self.cfg.norm_eps)
        self.mlp = _MLP(self.cfg)
        self.mlp_norm = LayerNorm(self.cfg.norm_eps)

    def attention_in(self, carry: dict) -> dict:
        """Input of q, k, v."""
        return carry | {"h": carry["x"]}

    def attention_out(self, carry: dict) -> dict:
        """Input of o: the heads' contexts."""
        return carry | {"h": self.attn(carry["h"], carry.get("mask"))}

    def mlp_in(self, carry: dict) -> dict:
        """Input of up."""
        x = self.attn_norm(carry["x"] + self.attn.o(carry["h"]))
        return carry | {"x": x, "h": x}

    def mlp_act(self, carry: dict) -> dict:
        """Input of down."""
        return carry | {"h": self.mlp(carry["h"])}

    def finish(self, carry: dict) -> jax.Array:
        """Hidden state after the block, ``[B, T, D]``."""
        return self.mlp_norm(carry["x"] + self.mlp.down(carry["h"]))

    def __call__(self, carry: dict) -> tuple[jax.Array, None]:
        """``carry {"x" [B, T, D], "mask" [B, T]?}`` to the hidden state after the block."""
        carry = self.mlp_act(self.mlp_in(self.attention_out(self.attention_in(carry))))
        return self.finish(carry), None


class Bert(nn.Module):
    """BERT encoder; see the module's docstring for the parameters.

    Attributes:
      cfg: sizes.
      dtype: of activations; norms, softmax and the result are float32.
    """

    cfg: BertConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.embeddings = _Embeddings(self.cfg, self.dtype)
        self.blocks = BlockStack(functools.partial(Block, self.cfg, parent=None), self.cfg.num_layers)

    def embed(self, tokens: jax.Array, token_types: jax.Array | None = None) -> jax.Array:
        """``tokens int [B, T] -> [B, T, D]``: normalised sum of word, position and type rows."""
        check_tokens(tokens, None, self.cfg.max_positions)
        return self.embeddings(tokens, token_types)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array | None = None, token_types: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states of the last block.

        Args:
          tokens: int ``[B, T]``.
          mask: bool ``[B, T]``, the real tokens; None when all are.
          token_types: int ``[B, T]``, None for all zero.

        Returns:
          float32 ``[B, T, D]``; rows of padding hold no meaning.

        Raises:
          ValueError: tokens of a wrong rank, empty, longer than ``max_positions``; a mask of another shape or dtype.
        """
        check_tokens(tokens, mask, self.cfg.max_positions)
        carry = {} if mask is None else {"mask": mask}
        hidden, _ = self.blocks(self.embed(tokens, token_types), carry)
        return hidden.astype(jnp.float32)


class _Embeddings(nn.Module):
    cfg: BertConfig
    dtype: DTypeLike

    def setup(self):
        cfg = self.cfg
        self.word = Embedding(cfg.vocab_size, cfg.hidden_size)
        self.position = Embedding(cfg.max_positions, cfg.hidden_size)
        self.token_type = Embedding(cfg.type_vocab_size, cfg.hidden_size)
        self.norm = LayerNorm(cfg.norm_eps, dtype=self.dtype)

    def __call__(self, tokens: jax.Array, token_types: jax.Array | None) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        return self.norm(self.word(tokens) + self.position(positions) + self.token_type(types))


def mean_pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Sentence embeddings: mean over real tokens, scaled to unit length (Reimers and Gurevych, 2019).

    Args:
      hidden: ``[B, T, D]``.
      mask: bool ``[B, T]``; a row without real tokens gives zeros.

    Returns:
      float32 ``[B, D]``.
    """
    weight = mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
    mean = total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class BertBlocks:
    """The `Blockwise` view of `Bert`; its head is the identity, since the hidden state is the result.

    Attributes:
      cfg: sizes.
      dtype: of activations.
    """

    cfg: BertConfig
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
            Stage(("mlp/up/kernel",), Advance(block, "mlp_in")),
            Stage(("mlp/down/kernel",), Advance(block, "mlp_act")),
        )

    def embed(self, rest: Any, tokens: jax.Array) -> jax.Array:
        """``tokens int [B, T] -> [B, T, D]``."""
        return apply(Bert(self.cfg, self.dtype), rest, tokens, method="embed")

    def finish(self, block_params: Any, carry: dict) -> jax.Array:
        """Hidden state after a block."""
        return apply(Block(self.cfg), block_params, carry, method="finish")

    def head(self, rest: Any, hidden: jax.Array) -> jax.Array:
        """The hidden state itself, in float32."""
        del rest
        return hidden.astype(jnp.float32)
