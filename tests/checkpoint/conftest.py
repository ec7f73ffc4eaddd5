"""Small checkpoints that the tests of reading write and break."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressjax.checkpoint import ModelSource, open_model
from compressjax.checkpoint.names import GGUF_NAMES, HF_NAMES, block_modules, rest_modules
from compressjax.checkpoint.rotary_order import to_interleaved

REFERENCE = Path(__file__).resolve().parent.parent / "models" / "reference"
DECODERS = ("llama3", "llama_linear", "mistral", "qwen2", "qwen3", "smollm2")


@pytest.fixture(scope="session")
def smollm2(smollm2_path) -> ModelSource:
    """The packaged model, opened once."""
    return open_model(smollm2_path)


@pytest.fixture
def reference_folder(tmp_path) -> Callable[[str], Path]:
    """A private copy of a reference checkpoint, to be changed at will."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(REFERENCE / name, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        return folder

    return copy


@pytest.fixture
def edit_config() -> Callable[..., None]:
    """Change keys of a folder's config.json; a value of None removes the key."""

    def edit(folder: Path, **changes) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))

    return edit


@pytest.fixture
def edit_tensors() -> Callable[..., None]:
    """Apply a function to a folder's dict of tensors in place and write it back."""

    def edit(folder: Path, change: Callable[[dict], None]) -> None:
        tensors = {name: values.copy() for name, values in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


@pytest.fixture
def write_gguf(tmp_path) -> Callable[..., Path]:
    """Write a GGUF file from metadata and tensors."""

    def write(
        metadata: dict,
        tensors: dict[str, np.ndarray] | None = None,
        kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
        arch: str = "llama",
        name: str = "model.gguf",
    ) -> Path:
        """Keys starting with a dot get the architecture before them; ``kinds`` marks tensors given as raw bytes."""
        writer = gguf.GGUFWriter(tmp_path / name, arch)
        for key, value in metadata.items():
            key = arch + key if key.startswith(".") else key
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for tensor, values in (tensors or {}).items():
            writer.add_tensor(tensor, np.ascontiguousarray(values), raw_dtype=(kinds or {}).get(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write


@pytest.fixture
def reference_gguf(write_gguf) -> Callable[..., Path]:
    """A reference checkpoint rewritten as GGUF, as the public converter does it; metadata and tensors may be edited."""

    def build(
        name: str, metadata: dict | None = None, change: Callable[[dict], None] | None = None, arch: str | None = None
    ) -> Path:
        source = open_model(REFERENCE / name)
        config = source.config
        hf = load_file(REFERENCE / name / "model.safetensors")
        arch = arch or {"qwen2": "qwen2", "qwen3": "qwen3"}.get(name, "llama")
        heads = {"attn/q": config.num_heads, "attn/k": config.num_kv_heads} if arch == "llama" else {}
        tensors = {}
        places = [(module, None) for module in rest_modules(config)]
        places += [(module, index) for index in range(config.num_layers) for module in block_modules(config)]
        for module, index in places:
            for suffix in ("weight", "bias") if module.bias else ("weight",):
                values = hf[f"{HF_NAMES.prefix(module.path, index)}.{suffix}"]
                if module.path in heads:
                    values = to_interleaved(values, heads[module.path])
                tensors[f"{GGUF_NAMES.prefix(module.path, index)}.{suffix}"] = values
        facts = {
            ".block_count": config.num_layers,
            ".context_length": config.max_positions,
            ".embedding_length": config.hidden_size,
            ".feed_forward_length": config.intermediate_size,
            ".attention.head_count": config.num_heads,
            ".attention.head_count_kv": config.num_kv_heads,
            ".attention.key_length": config.head_dim,
            ".attention.value_length": config.head_dim,
            ".attention.layer_norm_rms_epsilon": config.norm_eps,
            ".rope.freq_base": config.rope_theta,
        }
        if config.sliding_window is not None:
            facts[".attention.sliding_window"] = config.sliding_window
        facts |= metadata or {}
        if change is not None:
            change(tensors)
        return write_gguf({k: v for k, v in facts.items() if v is not None}, tensors, arch=arch)

    return build
