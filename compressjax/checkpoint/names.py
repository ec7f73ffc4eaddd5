"""The modules of a Llama-family decoder, and what checkpoint formats call them.

Both formats name the tensors of a module ``<prefix>.weight`` and ``<prefix>.bias``, so a map from our module path to a
prefix is all that differs. Readers and writers of checkpoints share these tables.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from compressjax.models.config import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """One module with parameters.

    Attributes:
      path: where it sits in our parameter tree, keys joined by "/" ("attn/q").
      kind: "linear" (kernel ``[inputs, outputs]``, bias ``[outputs]``), "norm" (scale ``[outputs]``; ``inputs`` is 1)
        or "embedding" (``[inputs, outputs]``: one row per token id).
      bias: a linear carries a bias.
    """

    path: str
    kind: Literal["linear", "norm", "embedding"]
    inputs: int
    outputs: int
    bias: bool = False


def block_modules(config: LlamaConfig) -> tuple[Module, ...]:
    """Modules of one decoder block, in the order of the forward pass."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def norm(path: str, size: int) -> Module:
        return Module(path=path, kind="norm", inputs=1, outputs=size)

    def linear(path: str, inputs: int, outputs: int, bias: bool) -> Module:
        return Module(path=path, kind="linear", inputs=inputs, outputs=outputs, bias=bias)

    head_norms = (norm("attn/q_norm", config.head_dim), norm("attn/k_norm", config.head_dim))
    return (
        norm("attn_norm", width),
        linear("attn/q", width, queries, config.qkv_bias),
        linear("attn/k", width, keys, config.qkv_bias),
        linear("attn/v", width, keys, config.qkv_bias),
        *(head_norms if config.qk_norm else ()),
        linear("attn/o", queries, width, config.output_bias),
        norm("mlp_norm", width),
        linear("mlp/gate", width, inner, config.mlp_bias),
        linear("mlp/up", width, inner, config.mlp_bias),
        linear("mlp/down", inner, width, config.mlp_bias),
    )


def rest_modules(config: LlamaConfig) -> tuple[Module, ...]:
    """Modules outside the blocks: embedding, last norm and, when it is not tied, the output head."""
    vocab, width = config.vocab_size, config.hidden_size
    head = Module(path="head", kind="linear", inputs=width, outputs=vocab)
    return (
        Module(path="embed", kind="embedding", inputs=vocab, outputs=width),
        Module(path="final_norm", kind="norm", inputs=1, outputs=width),
        *(() if config.tie_embeddings else (head,)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameMap:
    """Tensor-name prefixes of one checkpoint format.

    Attributes:
      block_prefix: what comes before a block's own names, with ``{}`` for the block number.
      block, rest: module path -> prefix.
    """

    block_prefix: str
    block: Mapping[str, str]
    rest: Mapping[str, str]

    def prefix(self, path: str, block: int | None = None) -> str:
        """Prefix of module ``path`` in block number ``block`` (0-based), or outside the blocks when that is None."""
        return self.rest[path] if block is None else self.block_prefix.format(block) + self.block[path]


HF_NAMES = NameMap(
    block_prefix="model.layers.{}.",
    block=MappingProxyType(
        {
            "attn_norm": "input_layernorm",
            "attn/q": "self_attn.q_proj",
            "attn/k": "self_attn.k_proj",
            "attn/v": "self_attn.v_proj",
            "attn/o": "self_attn.o_proj",
            "attn/q_norm": "self_attn.q_norm",
            "attn/k_norm": "self_attn.k_norm",
            "mlp_norm": "post_attention_layernorm",
            "mlp/gate": "mlp.gate_proj",
            "mlp/up": "mlp.up_proj",
            "mlp/down": "mlp.down_proj",
        }
    ),
    rest=MappingProxyType({"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}),
)

GGUF_NAMES = NameMap(
    block_prefix="blk.{}.",
    block=MappingProxyType(
        {
            "attn_norm": "attn_norm",
            "attn/q": "attn_q",
            "attn/k": "attn_k",
            "attn/v": "attn_v",
            "attn/o": "attn_output",
            "attn/q_norm": "attn_q_norm",
            "attn/k_norm": "attn_k_norm",
            "mlp_norm": "ffn_norm",
            "mlp/gate": "ffn_gate",
            "mlp/up": "ffn_up",
            "mlp/down": "ffn_down",
        }
    ),
    rest=MappingProxyType({"embed": "token_embd", "final_norm": "output_norm", "head": "output"}),
)
