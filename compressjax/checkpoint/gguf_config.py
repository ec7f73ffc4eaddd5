"""GGUF metadata -> LlamaConfig."""

from typing import Any

import numpy as np

from compressjax.checkpoint.gguf_table import GGUFTable
from compressjax.models.config import LlamaConfig, RopeScaling
from compressjax.models.rope import rotary_frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""GGUF architecture names we read; Mistral files carry "llama"."""

ROPE_DIVISORS = "rope_freqs.weight"
"""Tensor with one divisor per rotary frequency: how GGUF writes Llama 3 scaling."""


def config_from_gguf(table: GGUFTable) -> LlamaConfig:
    """Architecture of a GGUF decoder.

    Raises:
      ValueError: unknown architecture, a missing key, or a feature the models here lack, named.
    """
    metadata, tensors, path = table.metadata, table.tensors, table.path
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ValueError(f"{path}: unknown architecture {arch!r}; known: {', '.join(ARCHITECTURES)}")

    def need(key: str) -> Any:
        if f"{arch}.{key}" not in metadata:
            raise ValueError(f"{path}: the metadata lacks {arch}.{key}")
        return metadata[f"{arch}.{key}"]

    def have(key: str, default: Any) -> Any:
        return metadata.get(f"{arch}.{key}", default)

    if have("expert_count", 0):
        raise ValueError(f"{path}: mixture-of-experts models are not supported ({have('expert_count', 0)} experts)")
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: tensor token_embd.weight is missing")
    width, heads = need("embedding_length"), need("attention.head_count")
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(have(key, 0), list):
            raise ValueError(f"{path}: {arch}.{key} differs between blocks, which is not supported: {have(key, 0)}")
    head_dim = have("attention.key_length", width // heads)
    if have("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{path}: key and value heads of different size are not supported")
    if have("rope.dimension_count", head_dim) != head_dim:
        raise ValueError(
            f"{path}: rotary over {have('rope.dimension_count', head_dim)} of {head_dim} components is not supported"
        )
    return LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=need("feed_forward_length"),
        num_layers=need("block_count"),
        num_heads=heads,
        num_kv_heads=have("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=need("context_length"),
        rope_theta=_decimal(have("rope.freq_base", 10000.0)),
        rope_scaling=_rope_scaling(table, arch, head_dim),
        norm_eps=_decimal(need("attention.layer_norm_rms_epsilon")),
        tie_embeddings="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sliding_window=have("attention.sliding_window", 0) or None,
    )


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to the stored float32, so 9.99999975e-06 reads back as the 1e-05 written."""
    return float(str(np.float32(value)))


def _rope_scaling(table: GGUFTable, arch: str, head_dim: int) -> RopeScaling | None:
    metadata, path = table.metadata, table.path
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    # Files from before 2023-10 state linear scaling under a key of its own.
    factor = metadata.get(f"{arch}.rope.scaling.factor", metadata.get(f"{arch}.rope.scale_linear", 1.0))
    if "rope_factors_long.weight" in table.tensors:
        raise ValueError(f"{path}: rotary scaling 'longrope' is not supported")
    if ROPE_DIVISORS in table.tensors:
        return _llama3_scaling(table, arch, head_dim)
    if kind == "linear" or (kind == "none" and f"{arch}.rope.scale_linear" in metadata):
        return None if factor == 1.0 else RopeScaling(kind="linear", factor=_decimal(factor))
    if kind != "none":
        raise ValueError(f"{path}: rotary scaling {kind!r} is not supported; supported: linear, llama3, none")
    return None


def _llama3_scaling(table: GGUFTable, arch: str, head_dim: int) -> RopeScaling | None:
    """Recover the scaling whose divisors the file stores.

    The file keeps only the divisors. Every published Llama 3 model blends between 1 and 4 rotations over 8192
    positions, so these edges and the largest divisor give a candidate, which must reproduce all stored values.
    """
    divisors = table.read(ROPE_DIVISORS)
    theta = _decimal(table.metadata.get(f"{arch}.rope.freq_base", 10000.0))
    if divisors.shape != (head_dim // 2,):
        raise ValueError(f"{table.path}: {ROPE_DIVISORS} should have shape ({head_dim // 2},), got {divisors.shape}")
    if np.all(divisors == 1):
        return None
    plain = rotary_frequencies(head_dim, theta)
    stated = table.metadata.get(f"{arch}.rope.scaling.original_context_length", 8192)
    for original in dict.fromkeys((stated, 8192)):
        scaling = RopeScaling(
            kind="llama3", factor=_decimal(float(divisors.max())), original_max_positions=int(original)
        )
        if np.allclose(plain / divisors, rotary_frequencies(head_dim, theta, scaling), rtol=1e-4, atol=0):
            return scaling
    raise ValueError(
        f"{table.path}: the divisors in {ROPE_DIVISORS} are not those of Llama 3 scaling "
        "(low_freq_factor 1, high_freq_factor 4, original context 8192), the only ones supported"
    )
