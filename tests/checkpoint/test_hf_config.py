from pathlib import Path

import pytest

from compressjax.checkpoint.hf_config import config_from_hf
from compressjax.models.config import RopeScaling

PATH = Path("config.json")
BASE = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALED = RopeScaling(kind="llama3", factor=8.0, original_max_positions=8192)
LINEAR = RopeScaling(kind="linear", factor=4.0)
QWEN2 = {"model_type": "qwen2"}
WINDOW = {"use_sliding_window": True, "sliding_window": 32}


def read(changes):
    return config_from_hf(BASE | changes, PATH)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        # What a bare config.json leaves to the defaults of transformers.
        ({}, {"head_dim": 16, "rope_theta": 10000.0, "norm_eps": 1e-6, "max_positions": 2048, "num_kv_heads": 2}),
        ({}, {"tie_embeddings": False, "qkv_bias": False, "rope_scaling": None, "sliding_window": None}),
        ({"num_key_value_heads": None}, {"num_kv_heads": 4}),
        ({"num_key_value_heads": None, "model_type": "mistral", "num_attention_heads": 8}, {"num_kv_heads": 8}),
        ({"head_dim": 32}, {"head_dim": 32}),
        ({"head_dim": None}, {"head_dim": 16}),
        ({"model_type": "qwen3"}, {"head_dim": 128, "qk_norm": True, "qkv_bias": False}),
        ({"rms_norm_eps": 1e-5, "max_position_embeddings": 77}, {"norm_eps": 1e-5, "max_positions": 77}),
        ({"tie_word_embeddings": True}, {"tie_embeddings": True}),
        # Biases.
        ({"attention_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": False}),
        ({"mlp_bias": True}, {"qkv_bias": False, "mlp_bias": True}),
        (QWEN2, {"qkv_bias": True, "output_bias": False, "qk_norm": False}),
        ({"model_type": "qwen3", "attention_bias": True}, {"qkv_bias": True, "output_bias": True}),
        ({"model_type": "mistral"}, {"qkv_bias": False, "output_bias": False}),
        # Rotary settings of transformers 4 and 5, and older key names.
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | LLAMA3}, {"rope_scaling": SCALED}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": LINEAR}),
        ({"rope_scaling": {"rope_type": "default"}}, {"rope_scaling": None}),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3},
            {"rope_theta": 5e5, "rope_scaling": SCALED},
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6, "rope_scaling": None}),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}}},
            {"rope_theta": 7.0, "rope_scaling": LINEAR},
        ),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "llama3"} | LLAMA3 | {"original_max_position_embeddings": None},
            },
            {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_positions=64)},
        ),
        # Windows.
        ({"sliding_window": 32}, {"sliding_window": None}),
        ({"model_type": "mistral", "sliding_window": 32}, {"sliding_window": 32}),
        ({"model_type": "mistral", "sliding_window": None}, {"sliding_window": None}),
        ({"model_type": "mistral"}, {"sliding_window": 4096}),
        (QWEN2 | {"sliding_window": 32, "use_sliding_window": False}, {"sliding_window": None}),
        (QWEN2 | WINDOW | {"max_window_layers": 0}, {"sliding_window": 32}),
        (QWEN2 | WINDOW, {"sliding_window": None}),
        (QWEN2 | WINDOW | {"max_window_layers": 3}, {"sliding_window": None}),
        (QWEN2 | WINDOW | {"layer_types": ["sliding_attention"] * 3}, {"sliding_window": 32}),
        (QWEN2 | WINDOW | {"layer_types": ["full_attention"] * 3}, {"sliding_window": None}),
    ],
)
def test_variants(changes, wanted):
    config = read(changes)
    assert {key: getattr(config, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "unknown model_type 'gpt2'; known: llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "unknown model_type None"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size should be an integer, got '64'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported; supported: default, linear"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}}, "differ by layer type"),
        (QWEN2 | WINDOW | {"max_window_layers": 1}, "different attention kinds"),
        ({"num_key_value_heads": 3}, "does not divide"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        read(changes)
