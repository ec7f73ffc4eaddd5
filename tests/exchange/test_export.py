import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from compressjax.checkpoint.tensor_folder import open_tensor_folder
from compressjax.exchange.export import FolderExtras, export_compressed_tensors, export_folder, export_gptq
from compressjax.exchange.formats import CompressedTensorsFormat, GPTQFormat
from compressjax.leaf import add, pack_codebook

EXPORTS = [export_gptq, export_compressed_tensors]


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def kernel(params, place, layer=0):
    return jax.tree.map(lambda a: a[layer], params["blocks"]["mlp" if place != "q" else "attn"][place]["kernel"])


def replace_kernel(params, place, value):
    blocks = params["blocks"]
    return {**params, "blocks": {**blocks, "mlp": {**blocks["mlp"], place: {"kernel": value}}}}


def test_gptq_folder(tmp_path, tiny, random_params, quantize, tokenizer):
    params = quantize(random_params(tiny), symmetric=True)
    extras = FolderExtras(tokenizer=tokenizer, chat_template="{{ messages }}", eos_ids=(95, 3), bos_id=94)
    folder = export_gptq(params, tiny, tmp_path / "out", extras=extras)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.layers.1.self_attn.q_proj.qweight"].shape == (64 * 4 // 32, 64)
    assert tensors["model.layers.0.mlp.down_proj.qzeros"].shape == (5, 64 * 4 // 32)
    # Symmetric zeros are 8; version 1 stores 7.
    assert (tensors["model.layers.0.mlp.up_proj.qzeros"] == 0x77777777).all()
    np.testing.assert_array_equal(tensors["lm_head.weight"], np.asarray(params["head"]["kernel"]).T)
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embed"]["embedding"])
    np.testing.assert_array_equal(
        tensors["model.layers.1.post_attention_layernorm.weight"], params["blocks"]["mlp_norm"]["scale"][1]
    )
    config = config_of(folder)
    assert config["model_type"] == "llama"
    assert config["quantization_config"]["checkpoint_format"] == "gptq"
    assert config["quantization_config"]["sym"] is True
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 94, "eos_token_id": [95, 3]}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<bos>", "<eos>")
    assert settings["chat_template"] == "{{ messages }}"


def test_compressed_tensors_folder(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), bits=3)
    folder = export_compressed_tensors(params, tiny, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.layers.0.mlp.down_proj.weight_packed"].shape == (64, 160 * 3 // 32)
    assert tensors["model.layers.0.mlp.down_proj.weight_zero_point"].shape == (64 * 3 // 32, 5)
    assert tensors["model.layers.0.mlp.down_proj.weight_scale"].dtype == np.float16
    assert config_of(folder)["quantization_config"]["ignore"] == ["lm_head"]
    wide = export_compressed_tensors(params, tiny, tmp_path / "wide", scale_dtype=jnp.float32)
    got = load_file(wide / "model.safetensors")["model.layers.0.mlp.down_proj.weight_scale"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, tensors["model.layers.0.mlp.down_proj.weight_scale"].astype(np.float32))
    with pytest.raises(ValueError, match="scale_dtype bfloat16 cannot hold float16 scales exactly"):
        export_compressed_tensors(params, tiny, tmp_path / "no", scale_dtype=jnp.bfloat16)


def test_a_tied_head_is_not_expected_quantised(tmp_path, tiny, random_params, quantize):
    cfg = dataclasses.replace(tiny, tie_embeddings=True)
    params = quantize(random_params(cfg), symmetric=True)
    folder = export_compressed_tensors(params, cfg, tmp_path / "ct")
    assert config_of(folder)["quantization_config"]["ignore"] == ["lm_head"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtype_of_what_is_not_quantised(tmp_path, tiny, random_params, quantize, dtype):
    params = quantize(random_params(tiny), symmetric=True)
    folder = export_gptq(params, tiny, tmp_path / "out", dtype=dtype)
    assert config_of(folder)["dtype"] == np.dtype(dtype).name
    stored = open_tensor_folder(folder)
    got = stored.read("model.embed_tokens.weight")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.asarray(params["embed"]["embedding"].astype(dtype)))
    assert stored.read("model.layers.0.mlp.up_proj.scales").dtype == np.float16


def test_checkpoint_format(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), bits=2)
    folder = export_gptq(params, tiny, tmp_path / "auto")
    assert config_of(folder)["quantization_config"]["checkpoint_format"] == "gptq_v2"
    positive = {**params, "blocks": jax.tree.map(jnp.abs, random_params(tiny)["blocks"])}
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj .*zero point of 0.*export as 'gptq_v2'"):
        export_gptq(quantize(positive), tiny, tmp_path / "one", checkpoint_format="gptq")
    assert not (tmp_path / "one").exists()
    with pytest.raises(ValueError, match="checkpoint_format must be one of gptq, gptq_v2, got 'v3'"):
        export_gptq(params, tiny, tmp_path / "one", checkpoint_format="v3")


def test_short_last_group(tmp_path, tiny, random_params, quantize):
    """160 inputs in groups of 64: GPTQ can say it, compressed-tensors cannot."""
    params = quantize(random_params(tiny), group=64, symmetric=True)
    tensors = load_file(export_gptq(params, tiny, tmp_path / "gptq") / "model.safetensors")
    assert tensors["model.layers.0.mlp.down_proj.scales"].shape == (3, 64)
    assert tensors["model.layers.0.mlp.down_proj.g_idx"].tolist() == [i // 64 for i in range(160)]
    with pytest.raises(ValueError, match="blocks/mlp/down/kernel: .*64 does not divide 160 inputs"):
        export_compressed_tensors(params, tiny, tmp_path / "ct")


def test_activation_order(tmp_path, tiny, random_params, affine, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    order = np.random.default_rng(0).permutation(160)
    down = affine(random_params(tiny)["blocks"]["mlp"]["down"]["kernel"], symmetric=True, order=order)
    params = replace_kernel(params, "down", down)
    folder = export_gptq(params, tiny, tmp_path / "gptq")
    np.testing.assert_array_equal(
        load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.g_idx"], np.asarray(down.g_idx[1])
    )
    (rule,) = config_of(folder)["quantization_config"]["dynamic"].items()
    assert rule[0].endswith(r"mlp\.down_proj$") and rule[1]["desc_act"] is True
    with pytest.raises(ValueError, match="blocks/mlp/down/kernel: .*activation order"):
        export_compressed_tensors(params, tiny, tmp_path / "ct")


def test_groups_are_stated_in_as_few_schemes_as_possible(tmp_path, tiny, random_params, quantize):
    per_output = quantize(random_params(tiny), group=-1, symmetric=True)
    config = config_of(export_gptq(per_output, tiny, tmp_path / "a"))["quantization_config"]
    assert config["group_size"] == -1 and "dynamic" not in config
    cfg = dataclasses.replace(tiny, intermediate_size=128)
    one_or_two = quantize(random_params(cfg), group=64, symmetric=True)
    config = config_of(export_compressed_tensors(one_or_two, cfg, tmp_path / "b"))["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["weights"]["group_size"] == 64


@pytest.mark.parametrize("export", EXPORTS)
def test_shards(tmp_path, tiny, random_params, quantize, export):
    params = quantize(random_params(tiny), symmetric=True)
    whole = load_file(export(params, tiny, tmp_path / "one") / "model.safetensors")
    folder = export(params, tiny, tmp_path / "many", max_shard_bytes=30_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    parts = {file.name: load_file(file) for file in files}
    assert sum(len(part) for part in parts.values()) == len(whole)
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(parts[file][name], whole[name])
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("export", EXPORTS)
def test_leaves_that_cannot_be_exported(tmp_path, tiny, random_params, quantize, affine, export):
    params = quantize(random_params(tiny), symmetric=True)
    dense_up = random_params(tiny)["blocks"]["mlp"]["up"]["kernel"]
    codes = jnp.zeros((2, 64, 160), jnp.uint8)
    codebook = pack_codebook(codes, jnp.zeros((2, 1, 4, 160)), group=-1)
    affine_up = params["blocks"]["mlp"]["up"]["kernel"]
    real = dataclasses.replace(affine_up, zero=jnp.zeros(affine_up.scale.shape), zero_kind="real")
    for leaf, reason in [
        (codebook, "a Codebook leaf cannot be exported"),
        (add(affine_up, dense_up), "a Sum leaf cannot be exported"),
        (real, "integer zero points only"),
    ]:
        with pytest.raises(ValueError, match=f"blocks/mlp/up/kernel: .*{reason}"):
            export(replace_kernel(params, "up", leaf), tiny, tmp_path / "out")
    with pytest.raises(ValueError, match="embed/embedding: only kernels"):
        export({**params, "embed": {"embedding": affine(params["embed"]["embedding"])}}, tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", EXPORTS)
def test_sides_must_be_multiples_of_32(tmp_path, tiny, random_params, quantize, export):
    cfg = dataclasses.replace(tiny, intermediate_size=80)
    with pytest.raises(ValueError, match="blocks/mlp/gate/kernel: .*multiples of 32, this one is 64 x 80"):
        export(quantize(random_params(cfg), group=16), cfg, tmp_path / "out")


def test_bits(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), bits=5, symmetric=True)
    with pytest.raises(ValueError, match="codes of 2, 3, 4 or 8 bits, this leaf has 5"):
        export_gptq(params, tiny, tmp_path / "gptq")
    assert export_compressed_tensors(params, tiny, tmp_path / "ct").is_dir()


def test_nothing_is_quantised(tmp_path, tiny, random_params):
    with pytest.raises(ValueError, match="no linear of the model is quantised"):
        export_gptq(random_params(tiny), tiny, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_params_at_odds_with_the_config(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    with pytest.raises(ValueError, match=r"attn/q/bias is missing"):
        export_gptq(params, dataclasses.replace(tiny, qkv_bias=True), tmp_path / "out")
    with pytest.raises(ValueError, match=r"embed/embedding should end in shape \(97, 64\), got \(96, 64\)"):
        export_gptq(params, dataclasses.replace(tiny, vocab_size=97), tmp_path / "out")


def test_block_by_block_equals_at_once(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    rest = {key: value for key, value in params.items() if key != "blocks"}
    once = export_gptq(params, tiny, tmp_path / "once")
    with export_folder(tmp_path / "blocks", tiny, GPTQFormat()) as folder:
        for index in (1, 0):
            folder.add_block(index, jax.tree.map(lambda a, index=index: a[index], params["blocks"]))
        folder.add_rest(rest)
    assert config_of(tmp_path / "blocks") == config_of(once)
    wanted, got = load_file(once / "model.safetensors"), load_file(tmp_path / "blocks" / "model.safetensors")
    assert wanted.keys() == got.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])


def test_an_incomplete_export_leaves_nothing(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    block = jax.tree.map(lambda a: a[0], params["blocks"])
    with (
        pytest.raises(ValueError, match="2 parts were not added: block 1, the rest"),
        export_folder(tmp_path / "out", tiny, CompressedTensorsFormat()) as folder,
    ):
        folder.add_block(0, block)
        with pytest.raises(ValueError, match="block 0 was added before"):
            folder.add_block(0, block)
        with pytest.raises(IndexError, match="block 2 of a model with 2 blocks"):
            folder.add_block(2, block)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), export_folder(tmp_path / "out", tiny, GPTQFormat()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_targets(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    (tmp_path / "empty").mkdir()
    folder = export_gptq(params, tiny, tmp_path / "empty")
    (folder / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty and overwrite is False"):
        export_gptq(params, tiny, folder)
    assert (folder / "note.txt").exists()
    export_gptq(params, tiny, folder, overwrite=True)
    assert not (folder / "note.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no config.json: not replaced"):
        export_gptq(params, tiny, tmp_path / "other", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        export_gptq(params, tiny, tmp_path / "file", overwrite=True)


def test_other_files(tmp_path, tiny, random_params, quantize, tokenizer):
    params = quantize(random_params(tiny), symmetric=True)
    licence = tmp_path / "LICENSE"
    licence.write_text("free")
    folder = export_gptq(params, tiny, tmp_path / "out", extras=FolderExtras(files=(licence,)))
    assert (folder / "LICENSE").read_text() == "free"
    with pytest.raises(FileNotFoundError, match="no such file"):
        export_gptq(params, tiny, tmp_path / "b", extras=FolderExtras(files=(tmp_path / "absent",)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json is a file the export writes itself"):
        export_gptq(params, tiny, tmp_path / "b", extras=FolderExtras(files=(tmp_path / "config.json",)))
    with pytest.raises(ValueError, match=r"eos_ids\[0\] 96 is not an id of the tokenizer"):
        export_gptq(params, tiny, tmp_path / "b", extras=FolderExtras(tokenizer=tokenizer, eos_ids=(96,)))
    assert not (tmp_path / "b").exists()
