"""LlamaConfig -> GGUF architecture, metadata and rotary divisors."""

from typing import Any

import numpy as np

from compressjax.models.config import LlamaConfig
from compressjax.models.rope import rotary_frequencies

Metadata = dict[str, Any]
"""GGUF metadata as Python values: integers are written as uint32, floats as float32."""


def gguf_architecture(cfg: LlamaConfig) -> str:
    """ "qwen3" with QK norm, "qwen2" with a bias on q, k and v alone, else "llama" (Mistral too).

    Raises:
      ValueError: biases that the architecture lacks.
    """
    kind = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias and not cfg.output_bias else "llama"
    if kind == "qwen3" and (cfg.qkv_bias or cfg.output_bias):
        raise ValueError(f"GGUF's qwen3 has no attention biases, the model has qkv_bias={cfg.qkv_bias}")
    if kind != "llama" and cfg.mlp_bias:
        raise ValueError(f"GGUF's {kind} has no biases in the feed-forward part, the model has mlp_bias=True")
    return kind


def model_metadata(cfg: LlamaConfig, name: str) -> Metadata:
    """Metadata of the architecture.

    Args:
      cfg: architecture.
      name: name of the model.

    Raises:
      ValueError: as :func:`gguf_architecture`.
    """
    arch = gguf_architecture(cfg)
    own: Metadata = {
        "block_count": cfg.num_layers,
        "context_length": cfg.max_positions,
        "embedding_length": cfg.hidden_size,
        "feed_forward_length": cfg.intermediate_size,
        "attention.head_count": cfg.num_heads,
        "attention.head_count_kv": cfg.num_kv_heads,
        "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim,
        "attention.layer_norm_rms_epsilon": float(cfg.norm_eps),
        "rope.dimension_count": cfg.head_dim,
        "rope.freq_base": float(cfg.rope_theta),
        "vocab_size": cfg.vocab_size,
    }
    if cfg.sliding_window is not None:
        own["attention.sliding_window"] = cfg.sliding_window
    scaling = cfg.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    if scaling is not None and scaling.kind == "llama3":
        own["rope.scaling.original_context_length"] = scaling.original_max_positions
    general: Metadata = {"general.name": name, "general.basename": name, "general.quantization_version": 2}
    return general | {f"{arch}.{key}": value for key, value in own.items()}


def rotary_divisors(cfg: LlamaConfig) -> np.ndarray | None:
    """Float32 ``[head_dim / 2]`` by which rotary frequencies are divided, for Llama 3 scaling; else None."""
    if cfg.rope_scaling is None or cfg.rope_scaling.kind != "llama3":
        return None
    plain = np.asarray(rotary_frequencies(cfg.head_dim, cfg.rope_theta))
    return (plain / np.asarray(rotary_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling))).astype(np.float32)
