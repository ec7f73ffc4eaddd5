import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressjax.checkpoint import load_model
from compressjax.checkpoint.names import HF_NAMES, block_modules
from compressjax.checkpoint.tensor_folder import open_tensor_folder
from compressjax.exchange.export import FolderExtras, export_compressed_tensors, export_gptq
from compressjax.exchange.import_ import compressed_linears, gptq_linears
from compressjax.leaf import Affine, unpack_codes, unpack_zeros
from compressjax.ops import dense

FORMATS = [(export_gptq, gptq_linears), (export_compressed_tensors, compressed_linears)]


def read_linears(folder, cfg, reader):
    """Kernels of all blocks by path, unstacked, as the checkpoint reader would ask for them."""
    tensors = open_tensor_folder(folder)
    linears = reader(json.loads((folder / "config.json").read_text())["quantization_config"])
    out = {}
    for module in block_modules(cfg):
        if module.kind == "linear":
            for layer in range(cfg.num_layers):
                prefix = HF_NAMES.prefix(module.path, layer)
                shapes = linears.layout(tensors, prefix, module.inputs, module.outputs)
                for name, shape in shapes.items():
                    assert name in tensors.shards
                    assert shape in (None, tensors.shape(name)), name
                out[module.path, layer] = linears.read(tensors, prefix, module.inputs, module.outputs)
    return out


def original(params, path, layer):
    node = params["blocks"]
    for key in path.split("/"):
        node = node[key]
    return jax.tree.map(lambda a: a[layer], node["kernel"])


@pytest.mark.parametrize("export, reader", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"bits": 2}, marks=pytest.mark.slow),
        {"bits": 3},
        pytest.param({"bits": 4, "group": -1}, marks=pytest.mark.slow),
        {"bits": 4, "symmetric": True},
        pytest.param({"bits": 8, "symmetric": True}, marks=pytest.mark.slow),
    ],
)
def test_bit_for_bit(tmp_path, tiny, random_params, quantize, export, reader, options):
    params = quantize(random_params(tiny), **options)
    read = read_linears(export(params, tiny, tmp_path / "out"), tiny, reader)
    assert len(read) == 14
    for (path, layer), leaf in read.items():
        chex.assert_trees_all_equal(leaf, original(params, path, layer))
        assert jax.tree.structure(leaf) == jax.tree.structure(original(params, path, layer))


@pytest.mark.parametrize("export, reader", FORMATS)
def test_mixed_bits_and_dense_linears(tmp_path, tiny, random_params, quantize, export, reader):
    def rule(path):
        if path.startswith("mlp/down"):
            return {"bits": 3, "group": 32}
        return None if path.startswith("attn/o") else {"bits": 4, "symmetric": True}

    params = quantize(random_params(tiny), rule)
    read = read_linears(export(params, tiny, tmp_path / "out"), tiny, reader)
    for (path, layer), leaf in read.items():
        assert isinstance(leaf, Affine) == (path != "attn/o")
        chex.assert_trees_all_equal(leaf, original(params, path, layer))


@pytest.mark.parametrize("export", [export for export, _ in FORMATS])
def test_whole_model_through_the_checkpoint_reader(tmp_path, tiny, random_params, affine, quantize, tokenizer, export):
    """Everything comes back, a quantised output head too."""
    params = quantize(random_params(tiny), symmetric=True)
    params["head"] = {"kernel": affine(params["head"]["kernel"], bits=8)}
    extras = FolderExtras(tokenizer=tokenizer, chat_template="{{ x }}", eos_ids=(95, 3), bos_id=94)
    loaded = load_model(export(params, tiny, tmp_path / "out", extras=extras))
    assert loaded.config == tiny
    assert (loaded.eos_ids, loaded.bos_id, loaded.chat_template) == ((95, 3), 94, "{{ x }}")
    assert loaded.tokenizer.encode("w3 w9").ids == [3, 9]
    chex.assert_trees_all_equal(loaded.params, params)


def test_short_groups_and_activation_order(tmp_path, tiny, random_params, affine, quantize):
    params = quantize(random_params(tiny), group=64)
    order = np.random.default_rng(0).permutation(160)
    down = affine(random_params(tiny)["blocks"]["mlp"]["down"]["kernel"], group=64, order=order)
    params["blocks"]["mlp"]["down"]["kernel"] = down
    read = read_linears(export_gptq(params, tiny, tmp_path / "out"), tiny, gptq_linears)
    for (path, layer), leaf in read.items():
        chex.assert_trees_all_equal(leaf, original(params, path, layer))


def test_version_1_of_asymmetric_weights(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), bits=4)
    folder = export_gptq(params, tiny, tmp_path / "out", checkpoint_format="gptq")
    for (path, layer), leaf in read_linears(folder, tiny, gptq_linears).items():
        np.testing.assert_array_equal(unpack_zeros(leaf), unpack_zeros(original(params, path, layer)))


def test_scales_of_float32_are_rounded_to_float16(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), dtype=np.float32)
    read = read_linears(export_gptq(params, tiny, tmp_path / "out"), tiny, gptq_linears)
    for (path, layer), leaf in read.items():
        wanted = original(params, path, layer)
        np.testing.assert_array_equal(unpack_codes(leaf), unpack_codes(wanted))
        np.testing.assert_allclose(dense(leaf), dense(wanted), rtol=2**-11, atol=0)


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_damage_names_the_linear(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny))
    name = "model.layers.0.mlp.up_proj"
    folder = export_gptq(params, tiny, tmp_path / "a")
    edit(folder, lambda t: t.update({f"{name}.g_idx": t[f"{name}.g_idx"] + 9}))
    with pytest.raises(ValueError, match=rf"{name}: g_idx should hold 64 numbers from 0 to 1"):
        read_linears(folder, tiny, gptq_linears)
    folder = export_gptq(params, tiny, tmp_path / "b")
    edit(folder, lambda t: t[f"{name}.scales"].fill(np.nan))
    with pytest.raises(ValueError, match=rf"{name}: the scales hold NaN"):
        read_linears(folder, tiny, gptq_linears)
    folder = export_compressed_tensors(params, tiny, tmp_path / "c")
    edit(folder, lambda t: t.update({f"{name}.weight_shape": np.array([160, 32])}))
    with pytest.raises(ValueError, match=rf"{name}: "):
        read_linears(folder, tiny, compressed_linears)
    wrong = dataclasses.replace(tiny, intermediate_size=192)
    with pytest.raises(AssertionError, match=r"gate_proj\.qweight"):
        read_linears(tmp_path / "a", wrong, gptq_linears)
