"""Writing a compressed decoder as one GGUF file, which llama.cpp and what is built on it read."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from compressjax.checkpoint.gguf_config import ROPE_DIVISORS
from compressjax.checkpoint.names import GGUF_NAMES, Module
from compressjax.checkpoint.rotary_order import to_interleaved
from compressjax.exchange.export import FolderExtras
from compressjax.exchange.gguf_blocks import block_kind, pack_blocks
from compressjax.exchange.gguf_metadata import gguf_architecture, model_metadata, rotary_divisors
from compressjax.exchange.gguf_tokens import tokenizer_metadata
from compressjax.exchange.gguf_writer import GGUFFile, gguf_file
from compressjax.exchange.parameters import DecoderParts, check_parameters
from compressjax.leaf import is_leaf
from compressjax.models.config import LlamaConfig


class GGUFExport(DecoderParts):
    """A GGUF model being written, see :func:`export_gguf_file`: add every block, in any order, and the rest."""

    def __init__(self, file: GGUFFile, cfg: LlamaConfig, dtype: DTypeLike | None):
        super().__init__(cfg, GGUF_NAMES)
        self._file = file
        self._dtype = None if dtype is None else np.dtype(dtype)
        # The "llama" architecture pairs rotary rows 2i and 2i + 1, the others as we do.
        interleaved = gguf_architecture(cfg) == "llama"
        self._heads = {"attn/q": cfg.num_heads, "attn/k": cfg.num_kv_heads} if interleaved else {}

    def _parameter(self, module: Module, prefix: str, name: str, value: Any) -> None:
        tensor = f"{prefix}.{'bias' if name == 'bias' else 'weight'}"
        if is_leaf(value):
            kind, rows = pack_blocks(value, f"{prefix} ({module.path}/kernel)")
            self._file.add(tensor, self._rotary(module, rows), kind, value.shape[0])
            return
        value = np.asarray(value)
        if name in ("kernel", "embedding"):
            value = value if self._dtype is None else value.astype(self._dtype)
        else:
            # llama.cpp takes norms and biases in float32 only.
            value = value.astype(np.float32)
        self._file.add(tensor, self._rotary(module, value.T if name == "kernel" else value))

    def _rotary(self, module: Module, rows: np.ndarray) -> np.ndarray:
        heads = self._heads.get(module.path)
        return rows if heads is None else to_interleaved(rows, heads)


@contextlib.contextmanager
def export_gguf_file(
    out: str | os.PathLike[str],
    cfg: LlamaConfig,
    *,
    name: str = "model",
    extras: FolderExtras | None = None,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
) -> Iterator[GGUFExport]:
    """Writes a GGUF file block by block, so that one block at a time is in memory.

    The file appears, complete, when the ``with`` block ends; after an error there is no trace of it and an older one is
    as before.

    Args:
      out: file to write; missing parents are made.
      cfg: architecture of the model.
      name: name of the model.
      extras: tokenizer, chat template and special ids; ``files`` have no place in a single file.
      dtype: floating dtype of matrices that are not quantised; None keeps each array's own.
      overwrite: whether an existing GGUF file is replaced.

    Yields:
      The file to add blocks and the rest to.

    Raises:
      FileExistsError: ``out`` exists and ``overwrite`` is false, or it is no GGUF file.
      ValueError: a weight or an architecture GGUF cannot hold, named; a tokenizer it has no name for; an incomplete
        model.
    """
    final = Path(out).expanduser().resolve()
    extras = extras or FolderExtras()
    if extras.files:
        raise ValueError(f"extras.files: a GGUF file holds no other files, got {len(extras.files)}")
    _check_target(final, overwrite)
    # Both refused before hours of work rather than after.
    arch, metadata = gguf_architecture(cfg), model_metadata(cfg, name)
    if extras.tokenizer is not None:
        metadata |= tokenizer_metadata(
            extras.tokenizer,
            vocab_size=cfg.vocab_size,
            eos_ids=extras.eos_ids,
            bos_id=extras.bos_id,
            chat_template=extras.chat_template,
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    with gguf_file(final, arch) as file:
        file.metadata |= metadata
        divisors = rotary_divisors(cfg)
        if divisors is not None:
            file.add(ROPE_DIVISORS, divisors)
        export = GGUFExport(file, cfg, dtype)
        yield export
        export.check_complete()


def export_gguf(
    params: dict,
    cfg: LlamaConfig,
    out: str | os.PathLike[str],
    *,
    name: str = "model",
    extras: FolderExtras | None = None,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model as one GGUF file.

    Affine weights become Q4_0, Q4_1 or Q8_0 blocks, see :func:`~compressjax.exchange.gguf_blocks.block_kind`; groups
    are multiples of 32 inputs. Steps are stored as float16. Codes of 2 and 3 bits take the 4.5 bits per weight of Q4_0:
    GGUF's smaller types quantise scales by rules of their own and cannot hold these weights. A sliding window is
    written, but llama.cpp does not look for one in the "llama" architecture, Mistral's, and attends to everything.

    Args:
      params: parameters with stacked blocks; kernels are arrays or affine leaves.
      cfg: architecture.
      out, name, extras, dtype, overwrite: as :func:`export_gguf_file`.

    Returns:
      The file.

    Raises:
      As :func:`export_gguf_file`; every weight's kind is checked before anything is written.
    """
    check_parameters(params, cfg, block_kind)
    with export_gguf_file(out, cfg, name=name, extras=extras, dtype=dtype, overwrite=overwrite) as file:
        file.add_stacked(params)
    return Path(out)


def _check_target(final: Path, overwrite: bool) -> None:
    if not final.exists():
        return
    if final.is_dir():
        raise FileExistsError(errno.EEXIST, "is a folder; GGUF is one file, name it", str(final))
    if not overwrite:
        raise FileExistsError(errno.EEXIST, "exists and overwrite is False", str(final))
    with final.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FileExistsError(errno.EEXIST, "is no GGUF file: not replaced", str(final))
