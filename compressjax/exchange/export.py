"""Writing a compressed decoder as a Hugging Face folder that transformers, vLLM, GPTQModel and llm-compressor read."""

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from compressjax.checkpoint.atomic_directory import replacing
from compressjax.checkpoint.names import HF_NAMES, Module, block_modules, rest_modules
from compressjax.exchange.architecture import hf_architecture
from compressjax.exchange.formats import CompressedTensorsFormat, ExportFormat, GPTQFormat
from compressjax.exchange.parameters import DecoderParts, check_parameters
from compressjax.exchange.scheme import Scheme, leaf_scheme, unify_groups
from compressjax.exchange.shards import ShardWriter
from compressjax.exchange.tokenizer_files import write_generation_config, write_json, write_tokenizer
from compressjax.leaf import Affine, is_leaf
from compressjax.models.config import LlamaConfig

SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderExtras:
    """What a folder holds besides weights.

    Attributes:
      tokenizer: written as tokenizer.json with its settings, or None.
      chat_template: Jinja template, or None.
      eos_ids, bos_id: special ids, written into the configurations.
      files: other files to copy in under their own names (a licence, a README).
    """

    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    files: tuple[Path, ...] = ()


class ExportFolder(DecoderParts):
    """A folder being written, see :func:`export_folder`: add every block, in any order, and the rest."""

    def __init__(self, folder: Path, cfg: LlamaConfig, format: ExportFormat, dtype: DTypeLike | None, limit: int):
        super().__init__(cfg, HF_NAMES)
        self._format = format
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._shards = ShardWriter(folder, limit)
        self._schemes: dict[str, tuple[Scheme, int] | None] = {}
        self._dtypes: dict[np.dtype, int] = {}

    def finish(self, extras: FolderExtras) -> dict[str, Any]:
        """Closes the weight files; returns the object for config.json.

        Raises:
          ValueError: blocks or the rest are missing, or nothing is quantised.
        """
        self.check_complete()
        self._shards.finish()
        stated = unify_groups({name: value for name, value in self._schemes.items() if value is not None})
        schemes = {name: stated.get(name) for name in self._names() if name in self._schemes}
        # torch makes a module of the tied head, which a reader would otherwise expect to find quantised.
        schemes.setdefault(HF_NAMES.prefix("head"), None)
        dtype = max(self._dtypes, key=self._dtypes.__getitem__).name
        config = hf_architecture(self._cfg, dtype=dtype, eos_ids=extras.eos_ids, bos_id=extras.bos_id)
        return config | {"quantization_config": self._format.config(schemes)}

    def _names(self) -> Iterator[str]:
        """Module names in the order of the forward pass, whatever order the blocks came in."""
        for index in range(self._cfg.num_layers):
            yield from (HF_NAMES.prefix(module.path, index) for module in block_modules(self._cfg))
        yield from (HF_NAMES.prefix(module.path) for module in rest_modules(self._cfg))

    def _parameter(self, module: Module, prefix: str, name: str, value: Any) -> None:
        self._shards.add(self._tensors(module, prefix, name, value))

    def _tensors(self, module: Module, prefix: str, name: str, value: Any) -> dict[str, np.ndarray]:
        if name != "kernel":
            return {f"{prefix}.{'bias' if name == 'bias' else 'weight'}": self._cast(value)}
        if is_leaf(value):
            tensors = self._format.tensors(value, f"{prefix} ({module.path}/kernel)")
            self._schemes[prefix] = (leaf_scheme(value), value.shape[0])
            return {f"{prefix}.{last}": tensor for last, tensor in tensors.items()}
        self._schemes[prefix] = None
        return {f"{prefix}.weight": self._cast(value).T}

    def _cast(self, value: Any) -> np.ndarray:
        value = np.asarray(value)
        value = value if self._dtype is None else value.astype(self._dtype)
        self._dtypes[value.dtype] = self._dtypes.get(value.dtype, 0) + value.size
        return value


@contextlib.contextmanager
def export_folder(
    out_dir: str | os.PathLike[str],
    cfg: LlamaConfig,
    format: ExportFormat,
    *,
    extras: FolderExtras | None = None,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Iterator[ExportFolder]:
    """Writes a folder block by block, so that one block at a time is in memory.

    The folder appears, complete, when the ``with`` block ends; after an error there is no trace of it and an older one
    is as before.

    Args:
      out_dir: where to write; missing parents are made.
      cfg: architecture of the model.
      format: :class:`GPTQFormat` or :class:`CompressedTensorsFormat`.
      extras: tokenizer, special ids, other files.
      dtype: floating dtype of everything that is not quantised; None keeps each array's own.
      max_shard_bytes: bytes per weight file.
      overwrite: whether an existing Hugging Face folder is replaced.

    Yields:
      The folder to add blocks and the rest to.

    Raises:
      FileExistsError: ``out_dir`` is a file, or a folder that is not empty and either ``overwrite`` is false or it is
        no Hugging Face folder.
      FileNotFoundError: one of ``extras.files`` is missing.
      ValueError: a weight the format cannot hold, named; an architecture no model type has; an incomplete model.
    """
    final = Path(out_dir).expanduser().resolve()
    extras = extras or FolderExtras()
    _check_target(final, overwrite)
    _check_files(extras.files)
    # Refused before hours of work rather than after.
    hf_architecture(cfg, dtype="float32")
    with replacing(final, primary=True, barrier=lambda _: None) as staging:
        folder = ExportFolder(staging, cfg, format, dtype, max_shard_bytes)
        yield folder
        write_json(staging / "config.json", folder.finish(extras))
        write_generation_config(staging, eos_ids=extras.eos_ids, bos_id=extras.bos_id)
        if extras.tokenizer is not None:
            write_tokenizer(
                staging,
                extras.tokenizer,
                chat_template=extras.chat_template,
                eos_ids=extras.eos_ids,
                bos_id=extras.bos_id,
                max_positions=cfg.max_positions,
            )
        for file in extras.files:
            if (staging / Path(file).name).exists():
                raise ValueError(f"extras.files: {Path(file).name} is a file the export writes itself")
            shutil.copyfile(file, staging / Path(file).name)


def export_gptq(
    params: dict,
    cfg: LlamaConfig,
    out_dir: str | os.PathLike[str],
    *,
    checkpoint_format: str = "auto",
    extras: FolderExtras | None = None,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Writes a model in the GPTQ layout.

    Scales are stored as float16; leaves whose scales are float16 come back bit for bit. GPTQModel and vLLM read weights
    of different schemes in one model; transformers (5.23, through optimum) reads one scheme and dense linears.

    Args:
      params: parameters with stacked blocks; kernels are arrays or affine leaves.
      cfg: architecture.
      out_dir: where to write.
      checkpoint_format: "gptq", "gptq_v2", or "auto": "gptq" if all weights are symmetric, else "gptq_v2", because
        GPTQModel takes asymmetric "gptq" only from itself and readers of it disagree about a zero point of 0.
      extras, dtype, max_shard_bytes, overwrite: as :func:`export_folder`.

    Returns:
      The folder.

    Raises:
      As :func:`export_folder`; every weight is checked before anything is written.
    """
    if checkpoint_format == "auto":
        checkpoint_format = "gptq" if _is_symmetric(params) else "gptq_v2"
    format = GPTQFormat(checkpoint_format=checkpoint_format)
    return _export(params, cfg, out_dir, format, extras, dtype, max_shard_bytes, overwrite)


def export_compressed_tensors(
    params: dict,
    cfg: LlamaConfig,
    out_dir: str | os.PathLike[str],
    *,
    extras: FolderExtras | None = None,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    scale_dtype: DTypeLike | None = None,
) -> Path:
    """Writes a model in the ``pack-quantized`` format of compressed-tensors.

    Groups must divide the inputs and be contiguous. transformers (5.23) reads asymmetric weights only with
    ``CompressedTensorsConfig(dequantize=True)``, and then only one scheme per model; vLLM has neither limit.

    Args:
      params, cfg, out_dir, extras, dtype, max_shard_bytes, overwrite: as :func:`export_gptq`.
      scale_dtype: dtype of the stored scales, one that holds them exactly; None keeps their own. Readers multiply in
        this dtype, so float32 gives weights as exact as ours.

    Returns:
      The folder.

    Raises:
      As :func:`export_gptq`.
    """
    format = CompressedTensorsFormat(scale_dtype=None if scale_dtype is None else np.dtype(scale_dtype).name)
    return _export(params, cfg, out_dir, format, extras, dtype, max_shard_bytes, overwrite)


def _export(params, cfg, out_dir, format, extras, dtype, max_shard_bytes, overwrite) -> Path:
    check_parameters(params, cfg, format.check)
    with export_folder(
        out_dir, cfg, format, extras=extras, dtype=dtype, max_shard_bytes=max_shard_bytes, overwrite=overwrite
    ) as folder:
        folder.add_stacked(params)
    return Path(out_dir)


def _is_symmetric(params: dict) -> bool:
    leaves = jax.tree.leaves(params, is_leaf=is_leaf)
    return all(leaf.zero_kind == "none" for leaf in leaves if isinstance(leaf, Affine))


def _check_target(final: Path, overwrite: bool) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise FileExistsError(errno.EEXIST, "is a file, not a folder to export to", str(final))
    if any(final.iterdir()):
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "the folder is not empty and overwrite is False", str(final))
        if not (final / "config.json").is_file():
            raise FileExistsError(errno.EEXIST, "holds files but no config.json: not replaced", str(final))


def _check_files(files: Sequence[Path]) -> None:
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(errno.ENOENT, "extras.files: no such file", str(file))
