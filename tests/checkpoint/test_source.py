import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressjax.checkpoint import open_model
from compressjax.checkpoint.names import HF_NAMES, block_modules, rest_modules
from compressjax.models.config import LlamaConfig

from .conftest import REFERENCE

WIDE = LlamaConfig(
    vocab_size=1000, hidden_size=256, intermediate_size=1024, num_layers=8, num_heads=4, num_kv_heads=4, head_dim=64
)
BLOCK_BYTES = 4 * (4 * 256 * 256 + 3 * 256 * 1024 + 2 * 256)


@pytest.fixture
def wide_folder(tmp_path):
    """A checkpoint of 36 MB, most of it in its eight blocks."""
    raw = {
        "model_type": "llama",
        "vocab_size": WIDE.vocab_size,
        "hidden_size": WIDE.hidden_size,
        "intermediate_size": WIDE.intermediate_size,
        "num_hidden_layers": WIDE.num_layers,
        "num_attention_heads": WIDE.num_heads,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {}
    places = [(module, None) for module in rest_modules(WIDE)]
    places += [(module, index) for index in range(WIDE.num_layers) for module in block_modules(WIDE)]
    for module, index in places:
        shape = {"norm": (module.outputs,), "linear": (module.outputs, module.inputs)}.get(
            module.kind, (module.inputs, module.outputs)
        )
        tensors[f"{HF_NAMES.prefix(module.path, index)}.weight"] = np.full(shape, index or 0, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def peak(call):
    """Result of a call, and the most bytes it held at once."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_opening_reads_no_weights_and_a_block_reads_only_itself(wide_folder):
    source, bytes_to_open = peak(lambda: open_model(wide_folder))
    assert bytes_to_open < 1_000_000
    block, bytes_for_block = peak(lambda: source.block(5))
    assert (block["mlp"]["up"]["kernel"] == 5).all()
    assert BLOCK_BYTES <= bytes_for_block < 1.5 * BLOCK_BYTES
    # Nothing is kept: a walk over all blocks needs no more than two.
    _, bytes_for_walk = peak(lambda: [source.block(index)["attn_norm"]["scale"][0] for index in range(8)])
    assert bytes_for_walk < 2.5 * BLOCK_BYTES


def test_opening_a_gguf_reads_no_weights(smollm2_path):
    """98 MB of weights; the 49,152 tokens and 48,900 merges are read, as Python strings."""
    _, opened = peak(lambda: open_model(smollm2_path))
    assert opened < 20_000_000


def test_block_numbers_outside_the_model():
    source = open_model(REFERENCE / "qwen2")
    for index in (-1, source.num_blocks):
        with pytest.raises(IndexError, match=f"block {index} of a model with {source.num_blocks} blocks"):
            source.block(index)


def test_blocks_can_be_read_again_and_are_separate():
    source = open_model(REFERENCE / "qwen2")
    first = source.block(0)
    first["attn"]["q"]["kernel"][:] = 0
    assert source.block(0)["attn"]["q"]["kernel"].any()


def test_structure_follows_the_configuration():
    block = open_model(REFERENCE / "qwen3").block(0)
    assert set(block) == {"attn_norm", "attn", "mlp_norm", "mlp"}
    assert set(block["attn"]) == {"q", "k", "v", "o", "q_norm", "k_norm"}
    assert set(block["attn"]["q"]) == {"kernel"}
    assert set(open_model(REFERENCE / "qwen2").block(0)["attn"]["q"]) == {"kernel", "bias"}
    assert set(open_model(REFERENCE / "llama3").rest()) == {"embed", "final_norm", "head"}
    assert set(open_model(REFERENCE / "smollm2").rest()) == {"embed", "final_norm"}


def test_fingerprints_tell_models_apart(reference_folder, edit_tensors):
    original = open_model(REFERENCE / "qwen2").fingerprint()
    folder = reference_folder("qwen2")
    assert open_model(folder).fingerprint() == original
    assert open_model(REFERENCE / "qwen3").fingerprint() != original
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 7.0))
    assert open_model(folder).fingerprint() != original


def test_a_renamed_source_is_otherwise_the_same():
    source = open_model(REFERENCE / "qwen2")
    renamed = dataclasses.replace(source, name="other")
    assert renamed.name == "other" and renamed.fingerprint() == source.fingerprint()
    assert source.name == "qwen2"
