import dataclasses

import pytest

from compressjax.checkpoint.names import GGUF_NAMES, HF_NAMES, block_modules, rest_modules
from compressjax.models.config import LlamaConfig

FULL = LlamaConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=True,
)


@pytest.mark.parametrize("names", [HF_NAMES, GGUF_NAMES])
def test_every_module_has_a_name_of_its_own(names):
    assert {module.path for module in block_modules(FULL)} == set(names.block)
    assert {module.path for module in rest_modules(FULL)} == set(names.rest)
    every = [names.prefix(path, 7) for path in names.block] + [names.prefix(path) for path in names.rest]
    assert len(set(every)) == len(every)


def test_prefixes():
    assert HF_NAMES.prefix("attn/q", 3) == "model.layers.3.self_attn.q_proj"
    assert GGUF_NAMES.prefix("attn/o", 12) == "blk.12.attn_output"
    assert HF_NAMES.prefix("head") == "lm_head"


def test_sizes_follow_heads_not_width():
    sizes = {module.path: (module.inputs, module.outputs) for module in block_modules(FULL)}
    assert sizes["attn/q"] == (24, 32)
    assert sizes["attn/k"] == (24, 16)
    assert sizes["attn/o"] == (32, 24)
    assert sizes["attn/q_norm"] == (1, 8)
    assert sizes["mlp/down"] == (40, 24)


def test_switches_add_and_remove_modules_and_biases():
    bare = dataclasses.replace(
        FULL, qk_norm=False, qkv_bias=False, output_bias=False, mlp_bias=False, tie_embeddings=True
    )
    assert not any(module.bias for module in block_modules(bare))
    assert all(module.bias for module in block_modules(FULL) if module.kind == "linear")
    assert "attn/q_norm" not in {module.path for module in block_modules(bare)}
    assert [module.path for module in rest_modules(bare)] == ["embed", "final_norm"]
