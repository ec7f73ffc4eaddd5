"""The benchmark's model as a plain Hugging Face folder, for libraries that read nothing else."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from compressjax.checkpoint import ModelSource
from compressjax.checkpoint.names import HF_NAMES, block_modules, rest_modules
from compressjax.exchange.architecture import hf_architecture

_STORED = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def write_plain_folder(source: ModelSource, folder: Path) -> None:
    """Writes config.json, model.safetensors (float32) and tokenizer.json."""
    folder.mkdir(parents=True)
    tensors: dict[str, np.ndarray] = {}
    for index in range(source.num_blocks):
        block = source.block(index)
        for module in block_modules(source.config):
            _add(tensors, HF_NAMES.prefix(module.path, index), block, module.path)
    rest = source.rest()
    for module in rest_modules(source.config):
        _add(tensors, HF_NAMES.prefix(module.path), rest, module.path)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = hf_architecture(source.config, dtype="float32", eos_ids=source.eos_ids, bos_id=source.bos_id)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if source.tokenizer is not None:
        (folder / "tokenizer.json").write_text(source.tokenizer.to_str(), encoding="utf-8")
        names = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


def _add(tensors, prefix, tree, path):
    for key in path.split("/"):
        tree = tree[key]
    for name, value in tree.items():
        array = value.T if name == "kernel" else value
        tensors[f"{prefix}.{_STORED[name]}"] = np.ascontiguousarray(array, np.float32)
