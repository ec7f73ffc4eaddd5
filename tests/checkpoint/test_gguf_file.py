import dataclasses

import numpy as np
import pytest

from compressjax.checkpoint import load_model, open_model
from compressjax.checkpoint.gguf_table import read_table
from compressjax.checkpoint.rotary_order import to_half_split
from compressjax.models.config import RopeScaling
from compressjax.models.rope import rotary_frequencies

from .conftest import DECODERS, REFERENCE


def equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            equal(value, second[key])
        else:
            np.testing.assert_array_equal(value, second[key])


def divisors(config):
    """The tensor by which the public converter writes Llama 3 scaling."""
    plain = rotary_frequencies(config.head_dim, config.rope_theta)
    return plain / rotary_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)


@pytest.mark.parametrize("name", DECODERS)
def test_a_converted_checkpoint_is_the_same_model(name, reference_gguf):
    """Same configuration and same numbers from GGUF as from the folder: rotary order, names, transposes, biases."""
    folder = open_model(REFERENCE / name)
    metadata, change = {}, None
    if name == "llama3":
        metadata = {".rope.scaling.original_context_length": 32}

        def change(tensors):
            tensors["rope_freqs.weight"] = divisors(folder.config)

    if name == "llama_linear":
        metadata = {".rope.scaling.type": "linear", ".rope.scaling.factor": 2.5}
    source = open_model(reference_gguf(name, metadata, change))
    assert source.config == folder.config
    equal(source.rest(), folder.rest())
    for index in range(source.num_blocks):
        equal(source.block(index), folder.block(index))


def test_qwen_rows_are_not_reordered_and_llama_rows_are(reference_gguf):
    as_llama = open_model(reference_gguf("qwen3", arch="llama")).block(0)["attn"]
    stored = read_table(reference_gguf("qwen3", arch="llama")).read("blk.0.attn_k.weight")
    np.testing.assert_array_equal(as_llama["k"]["kernel"], to_half_split(stored, 2).T)
    assert not np.array_equal(as_llama["k"]["kernel"], stored.T)
    stored = read_table(reference_gguf("qwen3")).read("blk.0.attn_k.weight")
    np.testing.assert_array_equal(open_model(reference_gguf("qwen3")).block(0)["attn"]["k"]["kernel"], stored.T)


def test_packaged_model_tensor_by_tensor(smollm2):
    table = read_table(smollm2.path)
    for index in (0, 13, 29):
        block = smollm2.block(index)
        stored = {part: table.read(f"blk.{index}.{part}.weight") for part in ("attn_q", "attn_k", "attn_v", "ffn_up")}
        per_head = stored["attn_q"].reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
        np.testing.assert_array_equal(block["attn"]["q"]["kernel"], per_head.T)
        per_head = stored["attn_k"].reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)
        np.testing.assert_array_equal(block["attn"]["k"]["kernel"], per_head.T)
        np.testing.assert_array_equal(block["attn"]["v"]["kernel"], stored["attn_v"].T)
        np.testing.assert_array_equal(block["mlp"]["up"]["kernel"], stored["ffn_up"].T)
        np.testing.assert_array_equal(block["mlp_norm"]["scale"], table.read(f"blk.{index}.ffn_norm.weight"))
    rest = smollm2.rest()
    assert set(rest) == {"embed", "final_norm"}
    np.testing.assert_array_equal(rest["embed"]["embedding"], table.read("token_embd.weight"))


def test_packaged_model_facts(smollm2):
    config = smollm2.config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (49152, 576, 1536)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.max_positions, config.rope_theta, config.norm_eps) == (8192, 100000.0, 1e-5)
    assert config.tie_embeddings and not config.qkv_bias and config.rope_scaling is None
    assert (smollm2.eos_id, smollm2.bos_id) == (2, 1)
    assert "<|im_start|>" in smollm2.chat_template


@pytest.mark.parametrize(
    ("scaling", "stated"),
    [
        (RopeScaling(kind="llama3", factor=32.0, original_max_positions=8192), None),
        (RopeScaling(kind="llama3", factor=8.0, original_max_positions=8192), None),
        (RopeScaling(kind="llama3", factor=4.0, original_max_positions=64), 64),
    ],
)
def test_llama3_scaling_is_recovered_from_its_divisors(scaling, stated, reference_gguf):
    config = dataclasses.replace(open_model(REFERENCE / "llama3").config, rope_scaling=scaling, rope_theta=500000.0)
    metadata = {".rope.freq_base": 500000.0, ".rope.scaling.original_context_length": stated}
    change = lambda tensors: tensors.update({"rope_freqs.weight": divisors(config)})  # noqa: E731
    got = open_model(reference_gguf("llama3", metadata, change)).config
    assert got == config


def test_divisors_of_one_are_no_scaling(reference_gguf):
    change = lambda tensors: tensors.update({"rope_freqs.weight": np.ones(4, np.float32)})  # noqa: E731
    assert open_model(reference_gguf("llama3", change=change)).config.rope_scaling is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0}, "rotary scaling 'yarn' is not supported"),
        ({".block_count": None}, r"lacks llama\.block_count"),
        ({".attention.layer_norm_rms_epsilon": None}, r"lacks llama\.attention\.layer_norm_rms_epsilon"),
        ({".expert_count": 8}, r"mixture-of-experts models are not supported \(8 experts\)"),
        ({".rope.dimension_count": 4}, "rotary over 4 of 8 components"),
        ({".attention.value_length": 16}, "different size"),
        ({".attention.head_count": [4, 4]}, r"attention\.head_count differs between blocks"),
        ({".attention.head_count_kv": [2, 1]}, r"attention\.head_count_kv differs between blocks"),
        ({".block_count": 3}, r"tensors are missing: blk\.2\."),
        ({".block_count": 1}, r"no place in the model: blk\.1\."),
        ({".feed_forward_length": 49}, r"ffn_gate.weight should have shape \(49, 32\) .* got \(48, 32\)"),
    ],
)
def test_metadata_refusals(metadata, message, reference_gguf):
    with pytest.raises(ValueError, match=message):
        open_model(reference_gguf("llama3", metadata))


def test_unknown_architecture_is_named_with_the_known(write_gguf):
    with pytest.raises(ValueError, match="unknown architecture 'gemma3'; known: llama, qwen2, qwen3"):
        open_model(write_gguf({}, arch="gemma3"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("token_embd.weight"), r"token_embd\.weight is missing"),
        (lambda t: t.pop("blk.0.ffn_up.weight"), r"missing: blk\.0\.ffn_up\.weight"),
        (lambda t: t.update({"cls.weight": np.ones(3, np.float32)}), r"no place in the model: cls\.weight"),
        (lambda t: t.update({"rope_freqs.weight": np.array([1, 2, 3, 9], np.float32)}), "not those of Llama 3"),
        (lambda t: t.update({"rope_freqs.weight": np.full(5, 2, np.float32)}), r"shape \(4,\), got \(5,\)"),
        (lambda t: t.update({"rope_factors_long.weight": np.ones(4, np.float32)}), "'longrope'"),
    ],
)
def test_tensor_refusals(change, message, reference_gguf):
    with pytest.raises(ValueError, match=message):
        open_model(reference_gguf("llama3", change=change))


def test_nan_is_found_when_its_block_is_read(reference_gguf):
    def spoil(tensors):
        tensors["blk.1.attn_output.weight"] = tensors["blk.1.attn_output.weight"].copy()
        tensors["blk.1.attn_output.weight"][0, 0] = np.nan

    source = open_model(reference_gguf("llama3", change=spoil))
    source.block(0)
    with pytest.raises(ValueError, match=r"model\.gguf: tensor blk\.1\.attn_output\.weight holds 1 NaN"):
        source.block(1)


def test_without_tokenizer(reference_gguf):
    loaded = load_model(reference_gguf("qwen3"))
    assert loaded.tokenizer is None and loaded.eos_id is None and loaded.chat_template is None


def test_several_ids_end_a_generation(reference_gguf):
    ids = {"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 5}
    assert open_model(reference_gguf("llama3", ids)).eos_ids == (5, 9)
