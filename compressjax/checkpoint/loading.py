"""Opening a decoder by path or name, and loading all of it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from compressjax.checkpoint.aligned import aligned_empty, to_device
from compressjax.checkpoint.gguf_file import open_gguf
from compressjax.checkpoint.hf_folder import open_hf_folder
from compressjax.checkpoint.native_folder import MANIFEST, open_native
from compressjax.checkpoint.packages import DECODERS, package_file
from compressjax.checkpoint.source import ModelSource
from compressjax.models.config import LlamaConfig
from compressjax.models.stack import stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A decoder in memory.

    Attributes:
      config: architecture.
      params: parameter tree with stacked blocks, ``blocks/attn/q/kernel`` is ``[L, D, H*hd]``.
      tokenizer, chat_template, name, eos_ids, bos_id: as in ``ModelSource``.
    """

    config: LlamaConfig
    params: dict
    tokenizer: Tokenizer | None
    chat_template: str | None
    name: str
    eos_ids: tuple[int, ...]
    bos_id: int | None

    @property
    def eos_id(self) -> int | None:
        """The main id that ends a generation."""
        return self.eos_ids[0] if self.eos_ids else None


def open_model(path_or_name: str | Path) -> ModelSource:
    """Open a decoder lazily.

    Args:
      path_or_name: a folder that ``compressjax compress`` wrote, a Hugging Face folder
        (config.json and safetensors), a GGUF file, a folder with exactly one GGUF
        file, or the name of a packaged model ("smollm2").

    Raises:
      FileNotFoundError: nothing there, or the package that holds the named model is not installed.
      ValueError: not a model we read, damaged, or at odds with its own configuration.
      NotImplementedError: weights stored by a quantisation method we do not read.
    """
    if not isinstance(path_or_name, str | Path):
        raise TypeError(f"path_or_name must be a str or Path, got {type(path_or_name).__name__}")
    if isinstance(path_or_name, str) and path_or_name in DECODERS:
        return dataclasses.replace(open_gguf(package_file(DECODERS[path_or_name])), name=path_or_name)
    path = Path(path_or_name)
    if path.is_file():
        if path.suffix == ".safetensors":
            raise ValueError(f"{path} holds weights only; give its folder, which must also hold config.json")
        return open_gguf(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no model at {path}: neither a file, a folder, nor one of {sorted(DECODERS)}")
    if (path / MANIFEST).is_file():
        return open_native(path)
    if (path / "config.json").is_file():
        return open_hf_folder(path)
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        inside = f"{len(found)} GGUF files ({', '.join(file.name for file in found)})" if found else "no GGUF file"
        raise ValueError(f"{path} holds no config.json and {inside}: expected a Hugging Face folder or one GGUF file")
    return open_gguf(found[0])


def load_model(path_or_name: str | Path, *, dtype: DTypeLike = jnp.float32) -> LoadedModel:
    """Load a whole decoder; arguments and errors of ``open_model``, plus those of reading every weight.

    Args:
      dtype: floating dtype of the plain parameters; compressed leaves keep theirs.
    """
    source = open_model(path_or_name)
    return LoadedModel(
        config=source.config,
        params=load_params(source, dtype=dtype),
        tokenizer=source.tokenizer,
        chat_template=source.chat_template,
        name=source.name,
        eos_ids=source.eos_ids,
        bos_id=source.bos_id,
    )


def load_params(source: ModelSource, *, dtype: DTypeLike = jnp.float32) -> dict:
    """All parameters with blocks stacked on a leading axis. Peak memory is the result and one tensor more.

    Where blocks are compressed in different ways their weights become ``ByLayer`` leaves, and the peak is twice the
    blocks as stored.

    Raises:
      ValueError: as ``ModelSource.block``; also when blocks hold different weights.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating type, got {jnp.dtype(dtype).name}")
    rest = _on_device(_cast(source.rest(), dtype))
    first, structure = jax.tree.flatten(_cast(source.block(0), dtype))
    stacked = [aligned_empty((source.num_blocks, *leaf.shape), leaf.dtype) for leaf in first]
    for index in range(source.num_blocks):
        leaves, found = (first, structure) if index == 0 else jax.tree.flatten(_cast(source.block(index), dtype))
        if found != structure or any(a.shape != slot.shape[1:] for a, slot in zip(leaves, stacked, strict=True)):
            del stacked
            return {**rest, "blocks": _stack_of_kinds(source, dtype)}
        for slot, leaf in zip(stacked, leaves, strict=True):
            slot[index] = leaf
    return {**rest, "blocks": jax.tree.unflatten(structure, [to_device(slot) for slot in stacked])}


def _stack_of_kinds(source: ModelSource, dtype: DTypeLike) -> dict:
    return stack_blocks([_on_device(_cast(source.block(index), dtype)) for index in range(source.num_blocks)])


def _on_device(tree: Any) -> Any:
    return jax.tree.map(_placed, tree)


def _placed(leaf: Any) -> Any:
    return to_device(leaf) if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    """Change the dtype of the numpy arrays in nested dicts; anything else is a compressed leaf and stays."""
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    return tree.astype(dtype, copy=False) if isinstance(tree, np.ndarray) else tree
