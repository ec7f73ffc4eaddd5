"""Architecture of a Llama-family decoder, as one hashable value."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the original context.

    Attributes:
      kind: "linear" divides every frequency by ``factor``; "llama3" leaves high frequencies alone, divides low
        ones and blends between (Llama 3.1 release notes).
      factor: stretch, > 0.
      low_freq_factor, high_freq_factor: edges of the blend, in rotations over the original context ("llama3").
      original_max_positions: context length before stretching ("llama3").
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"RopeScaling.kind must be 'linear' or 'llama3', got {self.kind!r}")
        if not self.factor > 0:
            raise ValueError(f"RopeScaling.factor must be > 0, got {self.factor}")
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor:
            raise ValueError(
                "RopeScaling.high_freq_factor must exceed low_freq_factor, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes and switches of a Llama-family decoder (Llama 2/3, Mistral, Qwen2/3, SmolLM2).

    Attributes:
      vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim: widths and counts;
        ``num_kv_heads`` divides ``num_heads`` (grouped-query attention).
      max_positions: context length the model was trained for, in tokens.
      rope_theta, rope_scaling: rotary base and stretch.
      norm_eps: epsilon of every RMSNorm.
      tie_embeddings: the output head is the transposed embedding.
      qkv_bias, output_bias, mlp_bias: which linears carry a bias (Qwen2: q, k, v).
      qk_norm: RMSNorm over each query and key head before rotation (Qwen3).
      sliding_window: a query sees this many last positions, itself included (Mistral); None sees all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int = 8192
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self):
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"LlamaConfig.{field} must be >= 1, got {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"LlamaConfig.num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"LlamaConfig.head_dim must be even and >= 2 for rotary pairs, got {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"LlamaConfig.sliding_window must be None or >= 1, got {self.sliding_window}")
