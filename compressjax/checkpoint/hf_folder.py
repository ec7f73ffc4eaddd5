"""A Hugging Face folder (config.json and safetensors) as a model source."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from compressjax.checkpoint.hf_config import config_from_hf
from compressjax.checkpoint.hf_tokenizer import read_chat_template, read_eos_ids, read_tokenizer
from compressjax.checkpoint.json_file import read_json
from compressjax.checkpoint.linear_format import LinearFormat, linear_format
from compressjax.checkpoint.names import HF_NAMES, Module, block_modules, rest_modules
from compressjax.checkpoint.source import ModelSource
from compressjax.checkpoint.tensor_checks import check_names, check_shape
from compressjax.checkpoint.tensor_folder import INDEX, TensorFolder, open_tensor_folder
from compressjax.models.config import LlamaConfig

# Buffers that old versions of transformers saved; they follow from the configuration.
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")


def open_hf_folder(path: Path) -> ModelSource:
    """Open a folder of model type llama, mistral, qwen2 or qwen3; float64, float32, float16 or bfloat16 weights.

    Raises:
      FileNotFoundError: config.json or weights are missing.
      ValueError: damaged, an unknown model type or feature, missing or unknown tensors, or wrong shapes.
      NotImplementedError: weights of a quantisation method we do not read.
    """
    raw = read_json(path / "config.json")
    config = config_from_hf(raw, path / "config.json")
    format = linear_format(raw, path / "config.json")
    folder = open_tensor_folder(path)
    _check_tensors(folder, config, format)
    weights = {shard.path for shard in folder.shards.values()}
    described = (path / name for name in ("config.json", INDEX, "tokenizer.json"))
    return ModelSource(
        name=path.resolve().name,
        path=path,
        files=(*(file for file in described if file.is_file()), *sorted(weights)),
        config=config,
        names=HF_NAMES,
        reader=HFParameters(folder, format),
        chat_template=read_chat_template(path),
        eos_ids=read_eos_ids(path, raw),
        bos_id=raw.get("bos_token_id"),
        make_tokenizer=functools.partial(read_tokenizer, path),
    )


@dataclasses.dataclass(frozen=True)
class HFParameters:
    """Parameters of one module from a folder of safetensors."""

    folder: TensorFolder
    format: LinearFormat

    def kernel(self, prefix: str, module: Module) -> Any:
        """Float32 ``[inputs, outputs]``, or a compressed leaf of that shape."""
        return self.format.read(self.folder, prefix, module.inputs, module.outputs)

    def bias(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[outputs]``."""
        return self.folder.read_float32(f"{prefix}.bias")

    def scale(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[outputs]``."""
        return self.folder.read_float32(f"{prefix}.weight")

    def embedding(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[inputs, outputs]``."""
        return self.folder.read_float32(f"{prefix}.weight")


def _check_tensors(folder: TensorFolder, config: LlamaConfig, format: LinearFormat) -> None:
    wanted: dict[str, tuple[int, ...] | None] = {}
    places = [(module, None) for module in rest_modules(config)]
    places += [(module, index) for index in range(config.num_layers) for module in block_modules(config)]
    for module, index in places:
        prefix = HF_NAMES.prefix(module.path, index)
        if module.kind == "linear":
            wanted |= format.layout(folder, prefix, module.inputs, module.outputs)
        elif module.kind == "norm":
            wanted[f"{prefix}.weight"] = (module.outputs,)
        else:
            wanted[f"{prefix}.weight"] = (module.inputs, module.outputs)
        if module.bias:
            wanted[f"{prefix}.bias"] = (module.outputs,)
    ignored = {name for name in folder.shards if _DERIVED.search(name)}
    if config.tie_embeddings:
        # Some files repeat the embedding under the head's name although it is tied.
        ignored.add(f"{HF_NAMES.prefix('head')}.weight")
    check_names(folder.shards, wanted, path=folder.path, ignored=ignored)
    for name, shape in wanted.items():
        if shape is not None:
            check_shape(folder.shape(name), shape, path=folder.file(name), name=name)
