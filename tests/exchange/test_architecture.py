import dataclasses
from pathlib import Path

import pytest

from compressjax.checkpoint.hf_config import config_from_hf
from compressjax.exchange.architecture import hf_architecture
from compressjax.models.config import RopeScaling

SCALED = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {}),
        ("llama", {"tie_embeddings": True, "rope_scaling": SCALED, "rope_theta": 5e5}),
        ("llama", {"rope_scaling": RopeScaling(kind="linear", factor=2.0)}),
        ("llama", {"qkv_bias": True, "output_bias": True}),
        ("llama", {"mlp_bias": True, "head_dim": 32}),
        ("mistral", {"sliding_window": 16, "norm_eps": 1e-6}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen2", {"qkv_bias": True, "sliding_window": 16}),
        ("qwen3", {"qk_norm": True, "head_dim": 32}),
        ("qwen3", {"qk_norm": True, "qkv_bias": True, "output_bias": True, "sliding_window": 8}),
    ],
)
def test_reads_back_as_the_same_model(tiny, kind, changes):
    cfg = dataclasses.replace(tiny, **changes)
    raw = hf_architecture(cfg, dtype="float16", eos_ids=(7, 9), bos_id=1)
    assert raw["model_type"] == kind
    assert raw["eos_token_id"] == [7, 9]
    assert raw["torch_dtype"] == raw["dtype"] == "float16"
    if kind == "qwen3" and cfg.qkv_bias:
        # The reader takes attention_bias of Qwen3 for q, k, v and o, as transformers does.
        assert raw["attention_bias"] is True
    assert config_from_hf(raw, Path("config.json")) == cfg
    # transformers 4 knows only the old keys, 5 writes only the new one.
    for dropped in (("rope_theta", "rope_scaling"), ("rope_parameters",)):
        kept = {key: value for key, value in raw.items() if key not in dropped}
        assert config_from_hf(kept, Path("config.json")) == cfg


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"output_bias": True}, "output_bias=True with qkv_bias=False"),
        ({"qk_norm": True, "qkv_bias": True}, "output_bias=False with qkv_bias=True"),
        ({"qkv_bias": True, "mlp_bias": True}, "mlp_bias=True exists in Llama only"),
        ({"qkv_bias": True, "output_bias": True, "sliding_window": 8}, "has no sliding_window"),
        ({"qkv_bias": True, "head_dim": 32}, "Qwen2 needs head_dim 16, got 32"),
    ],
)
def test_refuses_what_no_model_type_has(tiny, changes, reason):
    with pytest.raises(ValueError, match=reason):
        hf_architecture(dataclasses.replace(tiny, **changes), dtype="float32")
