"""LlamaConfig -> config.json of a Hugging Face decoder."""

from typing import Any

from compressjax.models.config import LlamaConfig, RopeScaling

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def hf_architecture(
    cfg: LlamaConfig, *, dtype: str, eos_ids: tuple[int, ...] = (), bos_id: int | None = None
) -> dict[str, Any]:
    """The object for config.json, in keys that transformers 4 and 5 and vLLM understand.

    The model type follows from the switches: QK norm is Qwen3; a bias on q, k, v alone is Qwen2; a sliding window
    without biases is Mistral; anything else is Llama.

    Args:
      cfg: architecture.
      dtype: of the floating tensors, "float32", "float16" or "bfloat16".
      eos_ids: ids that end a generation, the main one first.
      bos_id: id of the beginning-of-sequence token.

    Raises:
      ValueError: a combination of switches that no model type has, named.
    """
    kind = _model_type(cfg)
    raw: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
        # Old name and new name of the same two things.
        "torch_dtype": dtype,
        "dtype": dtype,
        **_rope(cfg.rope_theta, cfg.rope_scaling),
    }
    if kind in ("llama", "qwen3"):
        raw["attention_bias"] = cfg.qkv_bias
    if kind == "llama":
        raw["mlp_bias"] = cfg.mlp_bias
    if kind != "llama":
        raw["sliding_window"] = cfg.sliding_window
    if kind in ("qwen2", "qwen3"):
        windowed = cfg.sliding_window is not None
        raw["use_sliding_window"] = windowed
        # The first `max_window_layers` layers see everything.
        raw["max_window_layers"] = 0 if windowed else cfg.num_layers
        raw["layer_types"] = ["sliding_attention" if windowed else "full_attention"] * cfg.num_layers
    return raw


def _model_type(cfg: LlamaConfig) -> str:
    def refuse(reason: str):
        return ValueError(f"no Hugging Face model type fits this LlamaConfig: {reason}")

    if cfg.qk_norm:
        kind, output_bias = "qwen3", cfg.qkv_bias
    elif cfg.qkv_bias and not cfg.output_bias:
        kind, output_bias = "qwen2", False
    elif cfg.sliding_window is not None and not cfg.qkv_bias:
        kind, output_bias = "mistral", False
    else:
        kind, output_bias = "llama", cfg.qkv_bias
    if cfg.output_bias != output_bias:
        raise refuse(
            f"output_bias={cfg.output_bias} with qkv_bias={cfg.qkv_bias}, qk_norm={cfg.qk_norm}, "
            f"sliding_window={cfg.sliding_window}"
        )
    if cfg.mlp_bias and kind != "llama":
        raise refuse(f"mlp_bias=True exists in Llama only, the other switches say {kind}")
    if cfg.sliding_window is not None and kind == "llama":
        raise refuse("Llama with attention biases has no sliding_window")
    if kind == "qwen2" and cfg.head_dim * cfg.num_heads != cfg.hidden_size:
        raise refuse(f"Qwen2 needs head_dim {cfg.hidden_size // cfg.num_heads}, got {cfg.head_dim}")
    return kind


def _rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    stretch: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        stretch = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            stretch |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else stretch,
        "rope_parameters": {**stretch, "rope_theta": theta},
    }
