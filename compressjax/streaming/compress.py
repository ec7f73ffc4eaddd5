"""Compressing a checkpoint that need not fit in memory, block by block from disk to disk.

Finished shards are the only state. A run that was killed is started again with the same command: blocks whose shards
are there are run, not compressed again, and the rest goes on as if nothing had happened, to the same bytes. The result
takes its name only when it is complete.
"""

import collections
import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compressjax import _version
from compressjax.checkpoint.json_file import parse_object
from compressjax.checkpoint.native_folder import (
    MANIFEST,
    REST,
    block_file,
    describe_model,
    manifest_text,
    read_manifest,
    write_tokenizer_files,
)
from compressjax.checkpoint.native_shard import read_shard, write_shard, write_whole
from compressjax.checkpoint.source import ModelSource
from compressjax.driver import all_rules
from compressjax.models.llama import LlamaBlocks
from compressjax.quantization.outside_blocks import round_outside
from compressjax.sequential import compress_blocks, in_chunks
from compressjax.streaming.summary import CompressionSummary, MatrixRow, matrix_rows, size_of

_JOB = "job.json"


def partial_path(out: Path) -> Path:
    """Where an unfinished compression keeps its shards."""
    return out.with_name(out.name + ".partial")


def compress_model(
    source: ModelSource,
    out: Path,
    cfg: Any,
    tokens: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    rules: Mapping[str, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
    tuning: Any = None,
    embedding_bits: int | None = None,
    batch: int = 2,
    restart: bool = False,
    overwrite: bool = False,
    note: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CompressionSummary:
    """Compresses a model into the folder ``out``, holding one block of it in memory at a time.

    Args:
      source: the model, from ``open_model``.
      out: result folder; while unfinished, its shards stand in ``out + ".partial"``.
      cfg, rules: a method, or rules by path ("blocks/attn/*"), as for ``quantize``.
      tokens: calibration tokens, int ``[N, T]``.
      choices: configs of single weights of single blocks ("blocks/3/attn/q/kernel"), as an allocation gives them; they
        take precedence over the rules.
      tuning: a config with a ``block_rule`` that is run on every compressed block, or None.
      embedding_bits: of embedding and head, as ``round_outside`` takes them; None leaves them as they are.
      mask: bool ``[N, T]``, tokens that count; None for all.
      batch: windows run at once.
      restart: throw away what an interrupted run left.
      overwrite: replace a finished ``out``.
      note: JSON-able facts to record with the result.
      progress: called with (blocks done, blocks), also for blocks that an earlier run did.

    Returns:
      The summary, which is also in the folder's manifest.

    Raises:
      ValueError: ``out`` is there already, an interrupted run with other settings is, tokens do not fit the model, or
        a weight or statistic is not finite.
      OSError: the disk is full or not writable; finished shards stay for a resume.
    """
    started = time.perf_counter()
    out = Path(out)
    tokens = np.asarray(tokens, np.int32)
    _check(source, out, tokens, overwrite)
    work = partial_path(out)
    job = _job(source, cfg, rules, choices, tuning, embedding_bits, tokens, mask, batch)
    if restart:
        shutil.rmtree(work, ignore_errors=True)
    fresh = not work.exists()
    _claim(work, job)
    blocks = source.num_blocks
    try:
        rest = source.rest() if embedding_bits is None else round_outside(source.rest(), embedding_bits)
        if not (work / REST).exists():
            write_shard(work / REST, rest)
        sizes = size_of(rest)
        rows: list[MatrixRow] = []
        finished = [index for index in range(blocks) if (work / block_file(index)).exists()]
        for index in finished:
            saved = read_shard(work / block_file(index))
            sizes, rows = sizes + size_of(saved["params"]), rows + _rows(saved["rows"])
            if progress is not None:
                progress(index + 1, blocks)
        done = set(finished)

        def from_earlier(index: int) -> Any:
            if index not in done:
                return None
            return _on_device(read_shard(work / block_file(index))["params"])

        results = compress_blocks(
            LlamaBlocks(source.config),
            _on_device({"embed": rest["embed"]}),
            lambda i: _on_device(source.block(i)),
            in_chunks(tokens, mask, batch),
            cfg,
            rules=rules,
            choices=choices,
            tuning=tuning,
            finished=from_earlier if done else None,
        )
        del rest
        if len(done) < blocks:
            for result in results:
                own = matrix_rows(result.index, result.params, result.infos)
                shard = {"params": result.params, "rows": [dataclasses.asdict(row) for row in own]}
                write_shard(work / block_file(result.index), shard)
                sizes, rows = sizes + size_of(result.params), rows + list(own)
                if progress is not None:
                    progress(result.index + 1, blocks)
        summary = CompressionSummary(
            model=source.name,
            method=_method_text(cfg, rules, choices, tuning),
            bits_per_weight=sizes.leaf_bits / max(sizes.leaf_parameters, 1),
            parameters=sizes.parameters,
            compressed_parameters=sizes.leaf_parameters,
            bytes=sizes.bits // 8,
            dense_bytes_16bit=sizes.parameters * 2,
            matrices=tuple(rows),
            seconds=time.perf_counter() - started,
            note=dict(note or {}),
        )
        _publish(work, out, source, summary)
    except (ValueError, TypeError, NotImplementedError):
        # The user's mistake: the same command cannot go on, so nothing is kept that this run began.
        if fresh:
            shutil.rmtree(work, ignore_errors=True)
        raise
    return summary


def read_summary(folder: Path) -> CompressionSummary:
    """The summary of a finished folder.

    Raises:
      FileNotFoundError: no such folder or manifest.
      ValueError: the manifest has no summary.
    """
    fields = read_manifest(Path(folder)).get("summary")
    if fields is None:
        raise ValueError(f"{Path(folder) / MANIFEST} holds no summary")
    return CompressionSummary.from_json(fields)


def _check(source, out, tokens, overwrite):
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already; name another folder or allow overwriting")
    if out.exists() and not (out / MANIFEST).is_file():
        raise ValueError(f"{out} was not written by compressjax and is not overwritten")
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"calibration tokens must be [windows >= 1, length >= 1], got {tokens.shape}")
    if tokens.shape[1] > source.config.max_positions:
        raise ValueError(
            f"calibration windows of {tokens.shape[1]} tokens exceed the context of {source.config.max_positions}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= source.config.vocab_size:
        vocab = source.config.vocab_size
        raise ValueError(f"calibration tokens range from {low} to {high}, the vocabulary has {vocab}")


def _method_text(cfg, rules, choices, tuning):
    chosen = all_rules(cfg, rules)
    alone = list(chosen) == ["**"]
    text = repr(chosen["**"]) if alone else "; ".join(f"{glob} = {method!r}" for glob, method in chosen.items())
    if choices:
        counts = collections.Counter(map(repr, choices.values()))
        text += "; single weights: " + ", ".join(f"{count} of {method}" for method, count in counts.items())
    return text if tuning is None else f"{text}; then {tuning!r}"


def _job(source, cfg, rules, choices, tuning, embedding_bits, tokens, mask, batch):
    data = hashlib.sha256(tokens.tobytes())
    data.update(b"" if mask is None else np.asarray(mask, bool).tobytes())
    picked = hashlib.sha256(repr(sorted((choices or {}).items(), key=lambda item: item[0])).encode())
    return {
        "version": _version.__version__,
        "model": source.fingerprint(),
        "method": _method_text(cfg, rules, choices, tuning),
        "choices": picked.hexdigest(),
        "embedding bits": embedding_bits,
        "calibration": f"{list(tokens.shape)} {data.hexdigest()}",
        "batch": batch,
    }


def _claim(work: Path, job: dict[str, Any]) -> None:
    """Makes the working folder, or checks that the one that is there belongs to the same job."""
    if not (work / _JOB).is_file():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_whole(work / _JOB, manifest_text(job))
        return
    found = parse_object((work / _JOB).read_bytes(), str(work / _JOB))
    other = [name for name in job if found.get(name) != job[name]]
    if other:
        raise ValueError(
            f"{work} holds an interrupted run with another {', '.join(other)}; finish that one with its own settings, "
            "or restart to throw it away"
        )


def _publish(work: Path, out: Path, source: ModelSource, summary: CompressionSummary) -> None:
    write_tokenizer_files(work, source)
    for index in range(source.num_blocks):
        with contextlib.suppress(FileNotFoundError):
            (work / f".{block_file(index)}.writing").unlink()
    write_whole(work / MANIFEST, manifest_text({**describe_model(source), "summary": summary.to_json()}))
    (work / _JOB).unlink()
    retired = out.with_name(f".{out.name}.compressjax-old")
    if out.exists():
        os.replace(out, retired)
    os.replace(work, out)
    shutil.rmtree(retired, ignore_errors=True)


def _rows(saved):
    return [MatrixRow(**row) for row in saved]


def _on_device(tree):
    return jax.tree.map(jnp.asarray, tree)
