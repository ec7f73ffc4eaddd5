"""A GGUF file as a model source."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from compressjax.checkpoint.gguf_config import ROPE_DIVISORS, config_from_gguf
from compressjax.checkpoint.gguf_table import GGUFTable, read_table
from compressjax.checkpoint.gguf_tokenizer import build_tokenizer
from compressjax.checkpoint.names import GGUF_NAMES, Module, block_modules, rest_modules
from compressjax.checkpoint.rotary_order import to_half_split
from compressjax.checkpoint.source import ModelSource
from compressjax.checkpoint.tensor_checks import check_finite, check_names, check_shape
from compressjax.models.config import LlamaConfig


def open_gguf(path: Path) -> ModelSource:
    """Open a GGUF decoder of architecture llama (Mistral too), qwen2 or qwen3; every tensor type ``gguf`` dequantises.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, an unknown architecture, missing or unknown tensors, or shapes at odds with the metadata.
    """
    table = read_table(path)
    config = config_from_gguf(table)
    _check_tensors(table, config)
    # The converter to GGUF reorders query and key rows for this architecture only.
    rotary_heads = {"attn/q": config.num_heads, "attn/k": config.num_kv_heads}
    interleaved = table.metadata["general.architecture"] == "llama"
    metadata = table.metadata
    eos = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    return ModelSource(
        name=metadata.get("general.basename") or path.stem,
        path=path,
        files=(path,),
        config=config,
        names=GGUF_NAMES,
        reader=GGUFParameters(table, rotary_heads if interleaved else {}),
        chat_template=metadata.get("tokenizer.chat_template"),
        eos_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
        bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
        make_tokenizer=functools.partial(build_tokenizer, metadata, path),
    )


@dataclasses.dataclass(frozen=True)
class GGUFParameters:
    """Parameters of one module from a GGUF file.

    Attributes:
      table: the file.
      rotary_heads: module path -> number of heads, for projections whose rows are stored interleaved.
    """

    table: GGUFTable
    rotary_heads: dict[str, int]

    def kernel(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[inputs, outputs]``."""
        return np.ascontiguousarray(self._rows(f"{prefix}.weight", module).T)

    def bias(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[outputs]``."""
        return self._rows(f"{prefix}.bias", module)

    def scale(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[outputs]``."""
        return self._read(f"{prefix}.weight")

    def embedding(self, prefix: str, module: Module) -> np.ndarray:
        """Float32 ``[inputs, outputs]``."""
        return self._read(f"{prefix}.weight")

    def _rows(self, name: str, module: Module) -> np.ndarray:
        rows = self._read(name)
        heads = self.rotary_heads.get(module.path)
        return rows if heads is None else to_half_split(rows, heads)

    def _read(self, name: str) -> np.ndarray:
        values = self.table.read(name)
        check_finite(values, path=self.table.path, name=name)
        return values


def _check_tensors(table: GGUFTable, config: LlamaConfig) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    places = [(module, None) for module in rest_modules(config)]
    places += [(module, index) for index in range(config.num_layers) for module in block_modules(config)]
    for module, index in places:
        prefix = GGUF_NAMES.prefix(module.path, index)
        matrix = (module.outputs, module.inputs) if module.kind == "linear" else (module.inputs, module.outputs)
        wanted[f"{prefix}.weight"] = (module.outputs,) if module.kind == "norm" else matrix
        if module.bias:
            wanted[f"{prefix}.bias"] = (module.outputs,)
    check_names(table.tensors, wanted, path=table.path, ignored=(ROPE_DIVISORS,))
    for name, shape in wanted.items():
        check_shape(table.tensors[name].shape, shape, path=table.path, name=name)
