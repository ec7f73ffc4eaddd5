import dataclasses
import resource

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint import open_model
from compressjax.checkpoint.gguf_table import read_table
from compressjax.exchange.export import FolderExtras
from compressjax.exchange.export_gguf import export_gguf, export_gguf_file
from compressjax.leaf import pack_codebook
from compressjax.models.config import RopeScaling
from compressjax.ops import dense

VARIANTS = {
    "llama": {},
    "llama3": {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_positions=8192)},
    "linear": {"rope_scaling": RopeScaling(kind="linear", factor=2.5)},
    "mistral": {"sliding_window": 16},
    "biased": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True, "tie_embeddings": True},
    "qwen3": {"qk_norm": True},
}


def block(params, index):
    return jax.tree.map(lambda a: np.asarray(a)[index], params["blocks"])


def compare(got, want, path=""):
    assert got.keys() == want.keys(), path
    for key, value in got.items():
        if isinstance(value, dict):
            compare(value, want[key], f"{path}/{key}")
        else:
            np.testing.assert_array_equal(value, np.asarray(dense(want[key])), f"{path}/{key}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_reads_back_as_the_same_model(tmp_path, tiny, random_params, quantize, variant):
    """Configuration and every weight, exactly: names, transposes, rotary order, biases, steps and codes."""
    cfg = dataclasses.replace(tiny, rope_theta=500000.0, **VARIANTS[variant])
    params = quantize(random_params(cfg), symmetric=True)
    source = open_model(export_gguf(params, cfg, tmp_path / "model.gguf", name="tiny"))
    assert source.config == cfg and source.name == "tiny"
    compare(source.rest(), {key: value for key, value in params.items() if key != "blocks"})
    for index in range(cfg.num_layers):
        compare(source.block(index), block(params, index))
    assert list(tmp_path.iterdir()) == [tmp_path / "model.gguf"]


@pytest.mark.parametrize(
    "options, kind",
    [
        ({"bits": 4, "symmetric": True}, "Q4_0"),
        ({"bits": 3, "symmetric": True, "group": 64}, "Q4_0"),
        ({"bits": 3}, "Q4_0"),
        ({"bits": 2, "group": -1}, "Q4_0"),
        ({"bits": 8, "symmetric": True}, "Q8_0"),
        ({"bits": 6}, "Q8_0"),
    ],
)
def test_integer_offsets_are_kept_exactly(tmp_path, tiny, random_params, quantize, options, kind):
    params = quantize(random_params(tiny), **options)
    source = open_model(export_gguf(params, tiny, tmp_path / "model.gguf"))
    tensor = read_table(source.path).tensors["blk.1.ffn_down.weight"]
    assert tensor.kind.name == kind and tensor.nbytes == 64 * 160 // 32 * (18 if kind == "Q4_0" else 34)
    compare(source.block(1), block(params, 1))


def test_four_bits_with_zero_points_round_the_minimum_only(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), bits=4)
    source = open_model(export_gguf(params, tiny, tmp_path / "model.gguf"))
    assert read_table(source.path).tensors["blk.0.ffn_up.weight"].kind.name == "Q4_1"
    leaf = block(params, 0)["mlp"]["up"]["kernel"]
    step = np.repeat(np.asarray(leaf.scale, np.float32), 32, axis=0)
    error = np.abs(source.block(0)["mlp"]["up"]["kernel"] - np.asarray(dense(leaf))) / step
    # Half a unit in the last place of a float16 below 16 steps.
    assert 0 < error.max() <= 15 * 2.0**-11


def test_real_zero_points_take_q4_1(tmp_path, tiny, random_params, quantize):
    integer = quantize(random_params(tiny), bits=4)
    kernel = integer["blocks"]["attn"]["o"]["kernel"]
    zero = jnp.full(kernel.scale.shape, 3.5, jnp.float32)
    attn = integer["blocks"]["attn"] | {"o": {"kernel": dataclasses.replace(kernel, zero=zero, zero_kind="real")}}
    params = {**integer, "blocks": integer["blocks"] | {"attn": attn}}
    source = open_model(export_gguf(params, tiny, tmp_path / "model.gguf"))
    want = np.asarray(dense(block(params, 1)["attn"]["o"]["kernel"]))
    np.testing.assert_allclose(source.block(1)["attn"]["o"]["kernel"], want, atol=np.abs(want).max() * 1e-3)


def test_the_public_reader_reads_the_same_numbers(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), symmetric=True)
    path = export_gguf(params, tiny, tmp_path / "model.gguf", extras=FolderExtras(eos_ids=(95, 3), bos_id=94))
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = tensors["blk.1.attn_v.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.Q4_0 and stored.data_offset % 32 == 0
    got = gguf.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_array_equal(got, np.asarray(dense(block(params, 1)["attn"]["v"]["kernel"])).T)
    np.testing.assert_array_equal(tensors["output.weight"].data, np.asarray(params["head"]["kernel"]).T)
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2
    assert reader.get_field("general.architecture").contents() == "llama"


def test_plain_matrices_take_the_dtype_asked_for_and_norms_stay_float32(tmp_path, tiny, random_params, quantize):
    params = quantize(random_params(tiny), lambda path: {} if "down" in path else None)
    kinds = {}
    for name in ("float16", "bfloat16"):
        table = read_table(export_gguf(params, tiny, tmp_path / name, dtype=name))
        kinds[name] = {key: tensor.kind.name for key, tensor in table.tensors.items()}
    assert {kinds["float16"][f"{key}.weight"] for key in ("token_embd", "output", "blk.0.attn_q")} == {"F16"}
    assert kinds["bfloat16"]["token_embd.weight"] == "BF16"
    assert kinds["float16"]["blk.0.ffn_norm.weight"] == kinds["float16"]["output_norm.weight"] == "F32"


def test_groups_that_scatter_over_blocks_are_refused(tmp_path, tiny, random_params, affine):
    params = random_params(tiny)
    down = params["blocks"]["mlp"]["down"]["kernel"]
    order = np.random.default_rng(0).permutation(160)
    params["blocks"]["mlp"]["down"]["kernel"] = affine(down, order=order)
    with pytest.raises(ValueError, match=r"blk.0.ffn_down \(mlp/down/kernel\).*activation order; use static groups"):
        export_gguf(params, tiny, tmp_path / "model.gguf")
    # Whole blocks moved about are fine.
    order = np.arange(160).reshape(5, 32)[[3, 0, 4, 1, 2]].ravel()
    params["blocks"]["mlp"]["down"]["kernel"] = affine(down, order=order)
    source = open_model(export_gguf(params, tiny, tmp_path / "model.gguf"))
    want = np.asarray(dense(block(params, 0)["mlp"]["down"]["kernel"]))
    np.testing.assert_allclose(source.block(0)["mlp"]["down"]["kernel"], want, atol=np.abs(want).max() * 1e-2)


def table_leaf(kernel):
    codes = jnp.zeros(kernel.shape, jnp.uint8)
    return pack_codebook(codes, jnp.zeros((*kernel.shape[:-2], 1, 4, kernel.shape[-1])), group=-1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda affine, w: affine(w, bits=8), "blocks/mlp/down/kernel: GGUF's 8-bit blocks have no zero point"),
        (lambda affine, w: affine(w, group=48), "this leaf's groups of 48 cut through them"),
        (lambda affine, w: table_leaf(w), "a Codebook leaf cannot be exported"),
        (
            lambda affine, w: dataclasses.replace(
                affine(w, bits=6), zero=jnp.zeros_like(affine(w, bits=6).scale), zero_kind="real"
            ),
            "real zero points go into 4-bit blocks only, this leaf has 6 bits",
        ),
        (
            lambda affine, w: dataclasses.replace(
                affine(w), scale=jnp.full_like(affine(w).scale, 1e5, dtype=jnp.float32)
            ),
            "a scale of 100000 is beyond float16",
        ),
    ],
)
def test_weights_it_cannot_hold_are_named(tmp_path, tiny, random_params, affine, make, message):
    params = random_params(tiny)
    down = params["blocks"]["mlp"]["down"]
    down["kernel"] = make(affine, down["kernel"])
    with pytest.raises(ValueError, match=message):
        export_gguf(params, tiny, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_inputs_that_blocks_do_not_divide(tmp_path, tiny, random_params, quantize):
    cfg = dataclasses.replace(tiny, intermediate_size=144)
    with pytest.raises(ValueError, match="blocks/mlp/down/kernel: GGUF stores blocks of 32 inputs.* 144"):
        export_gguf(quantize(random_params(cfg)), cfg, tmp_path / "model.gguf")


def test_a_compressed_embedding_is_refused(tmp_path, tiny, random_params, affine):
    params = random_params(tiny)
    params["embed"]["embedding"] = affine(params["embed"]["embedding"])
    with pytest.raises(ValueError, match="embed/embedding: only kernels"):
        export_gguf(params, tiny, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qk_norm": True, "qkv_bias": True}, "qwen3 has no attention biases"),
        ({"qkv_bias": True, "mlp_bias": True}, "qwen2 has no biases in the feed-forward part"),
    ],
)
def test_architectures_it_lacks(tmp_path, tiny, random_params, changes, message):
    cfg = dataclasses.replace(tiny, **changes)
    with pytest.raises(ValueError, match=message):
        export_gguf(random_params(cfg), cfg, tmp_path / "model.gguf")


def test_only_a_gguf_file_is_replaced_and_only_when_asked(tmp_path, tiny, random_params):
    params, path = random_params(tiny), tmp_path / "deep" / "model.gguf"
    export_gguf(params, tiny, path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite is False"):
        export_gguf(params, tiny, path)
    assert export_gguf(random_params(tiny, seed=1), tiny, path, overwrite=True).read_bytes() != before
    with pytest.raises(FileExistsError, match="is a folder"):
        export_gguf(params, tiny, path.parent, overwrite=True)
    path.write_text("notes")
    with pytest.raises(FileExistsError, match="is no GGUF file"):
        export_gguf(params, tiny, path, overwrite=True)
    assert path.read_text() == "notes"


def test_an_unfinished_export_leaves_the_old_file_alone(tmp_path, tiny, random_params):
    params, path = random_params(tiny), tmp_path / "model.gguf"
    before = export_gguf(params, tiny, path).read_bytes()
    rest = {key: value for key, value in params.items() if key != "blocks"}
    missing = pytest.raises(ValueError, match="2 parts were not added: block 0, block 1")
    with missing, export_gguf_file(path, tiny, overwrite=True) as export:
        export.add_rest(rest)
    twice = pytest.raises(ValueError, match="the rest was added before")
    with twice, export_gguf_file(path, tiny, overwrite=True) as export:
        export.add_rest(rest)
        export.add_rest(rest)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_gguf(params, tiny, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_other_files_have_no_place_in_it(tmp_path, tiny, random_params):
    with pytest.raises(ValueError, match="holds no other files"):
        export_gguf(random_params(tiny), tiny, tmp_path / "m.gguf", extras=FolderExtras(files=(tmp_path / "LICENCE",)))
