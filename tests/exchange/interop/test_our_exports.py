"""Other libraries load what we export and compute the same logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.exchange.export import FolderExtras, export_compressed_tensors, export_gptq
from compressjax.exchange.export_gguf import export_gguf
from compressjax.models.config import RopeScaling
from compressjax.models.llama import Llama
from compressjax.ops import dense

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

# float32 against float32 through two blocks; the logits reach about 3.
CLOSE = 2e-5


def ours(cfg, params, tokens):
    return np.asarray(Llama(cfg).apply({"params": params}, jnp.asarray(tokens)))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "symmetric": True},
        {"bits": 8, "symmetric": True, "group": -1},
        {"bits": 4},
        {"bits": 3},
        {"bits": 2},
        {"bits": 4, "group": 64, "symmetric": True},
    ],
    ids=str,
)
def test_gptq_in_transformers(tmp_path, tiny, random_params, quantize, load_gptq, logits, tokens, options):
    """The last case has a short last group: 160 inputs in groups of 64."""
    params = quantize(random_params(tiny), **options)
    model = load_gptq(export_gptq(params, tiny, tmp_path / "out"))
    down = jax.tree.map(lambda a: a[1], params["blocks"]["mlp"]["down"]["kernel"])
    np.testing.assert_array_equal(model.model.layers[1].mlp.down_proj.dequantize_weight().numpy(), dense(down))
    np.testing.assert_allclose(logits(model, tokens), ours(tiny, params, tokens), atol=CLOSE)


def test_activation_order_and_dense_linears_in_transformers(
    tmp_path, tiny, random_params, affine, quantize, load_gptq, logits, tokens
):
    original = random_params(tiny)["blocks"]["mlp"]["up"]["kernel"]
    params = quantize(random_params(tiny), lambda path: None if "attn/o" in path else {"symmetric": True})
    order = np.random.default_rng(0).permutation(64)
    params["blocks"]["mlp"]["up"]["kernel"] = affine(original, symmetric=True, order=order)
    model = load_gptq(export_gptq(params, tiny, tmp_path / "out"))
    assert hasattr(model.model.layers[0].self_attn.o_proj, "weight")
    np.testing.assert_allclose(logits(model, tokens), ours(tiny, params, tokens), atol=CLOSE)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("options", [{"symmetric": True}, {"bits": 3}, {"bits": 2}], ids=str)
def test_gptq_in_gptqmodel(
    tmp_path, tiny, random_params, quantize, tokenizer, torch, gptqmodel, logits, tokens, options, mixed
):
    """GPTQModel keeps what is not quantised in float16, so the weights are made to be float16 values."""

    def rule(path):
        if not mixed:
            return options
        return {"attn/o": None, "mlp/down": {"bits": 8, "symmetric": True}}.get(path.removesuffix("/kernel"), options)

    halved = jax.tree.map(lambda a: a.astype(jnp.float16).astype(jnp.float32), random_params(tiny))
    params = quantize(halved, rule)
    extras = FolderExtras(tokenizer=tokenizer, eos_ids=(95,))
    folder = export_gptq(params, tiny, tmp_path / "out", extras=extras)
    loaded = gptqmodel.GPTQModel.load(
        str(folder), device="cpu", backend=gptqmodel.BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    model = torch.nn.Module.float(loaded.model)
    np.testing.assert_allclose(logits(model, tokens), ours(tiny, params, tokens), atol=CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "symmetric": True},
        {"bits": 8, "symmetric": True, "group": -1},
        {"bits": 4},
        {"bits": 3},
        {"bits": 2},
        {"bits": 5},
    ],
    ids=str,
)
def test_compressed_tensors_in_transformers(
    tmp_path, tiny, random_params, quantize, load_compressed, logits, tokens, options
):
    params = quantize(random_params(tiny), **options)
    folder = export_compressed_tensors(params, tiny, tmp_path / "out", scale_dtype=jnp.float32)
    np.testing.assert_allclose(logits(load_compressed(folder), tokens), ours(tiny, params, tokens), atol=CLOSE)


def test_compressed_tensors_kept_compressed(tmp_path, tiny, random_params, quantize, load_compressed, logits, tokens):
    """Symmetric weights stay packed until the first forward pass, and some linears are ignored."""
    params = quantize(random_params(tiny), lambda path: None if "attn/o" in path else {"bits": 3, "symmetric": True})
    folder = export_compressed_tensors(params, tiny, tmp_path / "out", scale_dtype=jnp.float32)
    model = load_compressed(folder, dequantize=False)
    assert "weight_packed" in dict(model.model.layers[0].mlp.up_proj.named_parameters())
    np.testing.assert_allclose(logits(model, tokens), ours(tiny, params, tokens), atol=CLOSE)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "tie_embeddings": True,
            "rope_theta": 5e5,
            "rope_scaling": RopeScaling(
                kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8
            ),
        },
        {"rope_scaling": RopeScaling(kind="linear", factor=4.0)},
        {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
        {"sliding_window": 5},
        {"qkv_bias": True},
        {"qkv_bias": True, "sliding_window": 5},
        {"qk_norm": True, "head_dim": 32},
        {"qk_norm": True, "sliding_window": 5},
    ],
    ids=str,
)
def test_architectures(tmp_path, tiny, random_params, quantize, load_compressed, logits, tokens, changes):
    """Every model type, with what its config.json must say right."""
    cfg = dataclasses.replace(tiny, **changes)
    params = quantize(random_params(cfg), symmetric=True)
    folder = export_compressed_tensors(params, cfg, tmp_path / "out", scale_dtype=jnp.float32)
    np.testing.assert_allclose(logits(load_compressed(folder), tokens), ours(cfg, params, tokens), atol=CLOSE)


def test_tokenizer_and_generation_settings(tmp_path, tiny, random_params, quantize, tokenizer, transformers):
    params = quantize(random_params(tiny), symmetric=True)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    extras = FolderExtras(tokenizer=tokenizer, chat_template=template, eos_ids=(95, 3), bos_id=94)
    folder = export_gptq(params, tiny, tmp_path / "out", extras=extras)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert read("w3 w5")["input_ids"] == tokenizer.encode("w3 w5").ids
    assert (read.eos_token, read.bos_token) == ("<eos>", "<bos>")
    assert read.apply_chat_template([{"role": "user", "content": "w7"}], tokenize=False) == "w7"
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == [95, 3]


# transformers (5.24) does not read a head's width for qwen3 and takes 128.
GGUF_MODELS = {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True, "head_dim": 128}}


@pytest.mark.parametrize("changes", GGUF_MODELS.values(), ids=GGUF_MODELS)
def test_gguf_in_transformers(tmp_path, tiny, random_params, quantize, torch, transformers, logits, tokens, changes):
    """transformers reads blocks into float32 weights and undoes the rotary order by itself."""
    cfg = dataclasses.replace(tiny, **changes)
    params = quantize(random_params(cfg), symmetric=True)
    export_gguf(params, cfg, tmp_path / "model.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    up = jax.tree.map(lambda a: a[1], params["blocks"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(model.model.layers[1].mlp.up_proj.weight.detach().numpy(), dense(up).T)
    np.testing.assert_allclose(logits(model, tokens), ours(cfg, params, tokens), atol=CLOSE)
