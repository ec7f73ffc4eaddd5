"""The folder that ``compressjax compress`` writes: a manifest, one shard per block, one for the rest, the tokenizer.

::

    compressjax.json       format, architecture, special ids, what was done, what it measured
    block-00000.safetensors ...    one tree per block, compressed leaves included
    rest.safetensors       embedding, last norm, head
    tokenizer.json, chat_template.jinja      when the model has them
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from compressjax.checkpoint.hf_tokenizer import read_chat_template, read_tokenizer
from compressjax.checkpoint.json_file import read_json
from compressjax.checkpoint.names import Module, NameMap, block_modules, rest_modules
from compressjax.checkpoint.native_shard import read_shard
from compressjax.checkpoint.source import ModelSource
from compressjax.models.config import LlamaConfig, RopeScaling
from compressjax.select import weights

MANIFEST = "compressjax.json"
REST = "rest.safetensors"
FORMAT = 1


def block_file(index: int) -> str:
    """File name of a block's shard."""
    return f"block-{index:05d}.safetensors"


def describe_model(source: ModelSource) -> dict[str, Any]:
    """What the manifest says about a model, apart from its weights and tokenizer."""
    return {
        "format": FORMAT,
        "name": source.name,
        "architecture": dataclasses.asdict(source.config),
        "eos_ids": list(source.eos_ids),
        "bos_id": source.bos_id,
    }


def config_from_manifest(fields: dict[str, Any]) -> LlamaConfig:
    """The architecture a manifest states."""
    scaling = fields["rope_scaling"]
    return LlamaConfig(**{**fields, "rope_scaling": None if scaling is None else RopeScaling(**scaling)})


def write_tokenizer_files(folder: Path, source: ModelSource) -> None:
    """Writes the tokenizer and the chat template of a model, as far as it has them."""
    if source.tokenizer is not None:
        (folder / "tokenizer.json").write_text(source.tokenizer.to_str(), encoding="utf-8")
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")


def open_native(path: Path) -> ModelSource:
    """Opens a folder that ``compressjax compress`` finished.

    Raises:
      FileNotFoundError: the manifest or a shard is missing.
      ValueError: the manifest is damaged or of a newer format.
    """
    raw = read_json(path / MANIFEST)
    if raw.get("format") != FORMAT:
        raise ValueError(f"{path / MANIFEST} has format {raw.get('format')!r}, this version reads {FORMAT}")
    try:
        config = config_from_manifest(raw["architecture"])
        eos_ids, bos_id, name = tuple(raw["eos_ids"]), raw["bos_id"], raw["name"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged: {error!r}") from error
    shards = [path / REST, *(path / block_file(i) for i in range(config.num_layers))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"{path} lacks {missing[:3]}{' and more' if len(missing) > 3 else ''}")
    return ModelSource(
        name=name,
        path=path,
        files=(path / MANIFEST, *shards),
        config=config,
        names=_names(config),
        reader=_ShardReader(path),
        chat_template=read_chat_template(path),
        eos_ids=eos_ids,
        bos_id=bos_id,
        make_tokenizer=functools.partial(read_tokenizer, path),
    )


def _names(config: LlamaConfig) -> NameMap:
    """Prefixes that are the shard's file and the module's own path."""
    return NameMap(
        block_prefix="block-{:05d}.safetensors:",
        block={m.path: m.path for m in block_modules(config)},
        rest={m.path: f"{REST}:{m.path}" for m in rest_modules(config)},
    )


class _ShardReader:
    """Reads modules from shards; the last shard's tree is kept, since its modules are asked for one by one."""

    def __init__(self, folder: Path):
        self._read = functools.lru_cache(maxsize=1)(lambda name: weights(_params(read_shard(folder / name))))

    def _find(self, prefix: str, field: str) -> Any:
        shard, _, path = prefix.partition(":")
        found = self._read(shard)
        if f"{path}/{field}" not in found:
            raise ValueError(f"{shard} has no {path}/{field}")
        return found[f"{path}/{field}"]

    def kernel(self, prefix: str, module: Module) -> Any:
        return self._find(prefix, "kernel")

    def bias(self, prefix: str, module: Module) -> Any:
        return self._find(prefix, "bias")

    def scale(self, prefix: str, module: Module) -> Any:
        return self._find(prefix, "scale")

    def embedding(self, prefix: str, module: Module) -> Any:
        return self._find(prefix, "embedding")


def _params(shard: Any) -> Any:
    """A block's shard holds its summary rows beside its parameters."""
    return shard.get("params", shard)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a finished folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not JSON.
    """
    return read_json(path / MANIFEST)


def manifest_text(fields: dict[str, Any]) -> bytes:
    """A manifest as the bytes of its file."""
    return (json.dumps(fields, indent=1) + "\n").encode()
