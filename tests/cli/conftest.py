"""A decoder small enough to compress in a second, as a folder with a tokenizer, and how to run commands."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from compressjax.checkpoint.hf_config import config_from_hf
from compressjax.checkpoint.names import HF_NAMES, block_modules, rest_modules
from compressjax.cli.main import main

VOCABULARY = 256
ARCHITECTURE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
}
SENTENCES = (
    "The river runs slowly past the old mill, and nobody counts the years.",
    "A sum of squares grows with every term that is added to it.",
    "Birds leave the valley in autumn; some of them never come back.",
)


class Ended(NamedTuple):
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """Stdout as the one JSON object it must be."""
        return json.loads(self.out)


@pytest.fixture
def command(capsys) -> Callable[..., Ended]:
    """Runs ``compressjax`` with the given words in this process."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


def byte_tokenizer() -> Tokenizer:
    """One token per byte, as byte-level tokenizers begin."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes a random decoder whose inputs are correlated enough for second-order methods to pay."""
    raw = ARCHITECTURE | changes
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    config = config_from_hf(raw, folder / "config.json")
    draw = np.random.default_rng(seed).standard_normal
    tensors = {}
    places = [(module, None) for module in rest_modules(config)]
    places += [(module, index) for index in range(config.num_layers) for module in block_modules(config)]
    for module, index in places:
        name = f"{HF_NAMES.prefix(module.path, index)}.weight"
        if module.kind == "norm":
            values = 1 + 0.1 * draw(module.outputs)
        elif module.kind == "embedding":
            values = draw((module.inputs, module.outputs))
        else:
            values = draw((module.outputs, module.inputs)) / np.sqrt(module.inputs)
        tensors[name] = values.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}")
    return folder


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Writes a random decoder into a folder; keywords change its config.json."""
    return write_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The model, to be read only."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny_copy(tiny, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A text file of a few thousand bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(SENTENCES[i % 3] for i in range(60)))
    return path


@pytest.fixture(scope="session")
def method() -> tuple[object, ...]:
    """The flags of the method that the quickstart uses, so that all tests share its compiled programs."""
    best = ("--grid", "hessian", "--asymmetric", "target", "--alpha", 0.5)
    return ("--method", "gptq", "--bits", 3, "--group", 16, *best)


@pytest.fixture(scope="session")
def quickstarted(tiny, text, tmp_path_factory) -> dict:
    """What ``quickstart --json`` printed about the model."""
    out = tmp_path_factory.mktemp("quick") / "start"
    words = [
        "quickstart",
        "--model",
        tiny,
        "--out",
        out,
        "--group",
        16,
        "--calibration",
        text,
        "--text",
        text,
        "--json",
    ]
    words += ["--calibration-windows", 8, "--windows", 3, "--length", 32, "--max-new-tokens", 8, "--prompt", "Hi."]
    stdout = io.StringIO()
    # The promotion rules of the tests are part of the key under which jax finds a compiled program again.
    rules = (jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"))
    with rules[0], rules[1], contextlib.redirect_stdout(stdout):
        assert main([str(word) for word in words]) == 0
    return json.loads(stdout.getvalue())


@pytest.fixture(scope="session")
def compressed(quickstarted) -> Path:
    """The model at 3 bits, to be read only."""
    return Path(quickstarted["model"])


@pytest.fixture
def edit_tensors() -> Callable[[Path, Callable[[dict], None]], None]:
    """Changes a folder's weights."""

    def edit(folder: Path, change: Callable[[dict], None]) -> None:
        tensors = {name: values.copy() for name, values in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit
