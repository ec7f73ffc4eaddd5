"""The libraries other people load our exports with; every test here skips where they are missing.

They need torch, so they live in an environment of their own: ``make interop``.
"""

import os

import numpy as np
import pytest

# Read when torch and gptqmodel are first imported: compiling kernels for models this small takes minutes, and on two
# cores gptqmodel gives its own loader fewer workers than it asks for.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; `make interop` sets up what these tests need")


@pytest.fixture
def torch():
    return library("torch")


@pytest.fixture
def transformers(torch):
    return library("transformers")


@pytest.fixture
def compressed_tensors(transformers):
    return library("compressed_tensors")


@pytest.fixture
def gptqmodel(transformers):
    return library("gptqmodel")


@pytest.fixture
def llmcompressor(compressed_tensors):
    return library("llmcompressor")


@pytest.fixture
def optimum(gptqmodel):
    return library("optimum")


@pytest.fixture
def load_gptq(torch, transformers, optimum):
    """``folder -> torch model`` through transformers, with float32 arithmetic throughout."""

    def load(folder):
        settings = transformers.GPTQConfig(bits=4, backend="gptq_torch")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=settings
        )
        # transformers forbids `.float()` on quantised models, yet it only widens scales and leaves packed words alone.
        return torch.nn.Module.float(model)

    return load


@pytest.fixture
def load_compressed(torch, transformers, compressed_tensors):
    """``folder, dequantize=True -> torch model`` through transformers in float32."""

    def load(folder, dequantize=True):
        settings = transformers.CompressedTensorsConfig(dequantize=dequantize)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=settings
        )

    return load


@pytest.fixture
def logits(torch):
    """``torch model, tokens [B, T] -> numpy [B, T, V]``."""

    def run(model, tokens):
        with torch.no_grad():
            return model(torch.tensor(np.asarray(tokens))).logits.float().numpy()

    return run


@pytest.fixture
def tokens():
    return np.random.default_rng(5).integers(0, 94, (2, 12))


@pytest.fixture
def their_model(torch, transformers, tokenizer, tmp_path):
    """Folder with a tiny random Llama made by transformers, with a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    folder = tmp_path / "theirs"
    transformers.LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder)
    special = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<eos>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
