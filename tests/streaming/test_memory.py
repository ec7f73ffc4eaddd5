"""Streaming compresses a checkpoint that is larger than the memory it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressjax.checkpoint.names import HF_NAMES, block_modules, rest_modules
from compressjax.exchange.architecture import hf_architecture
from compressjax.models.config import LlamaConfig


def config(depth: int) -> LlamaConfig:
    """A narrow and deep decoder; a block has 6.3 MB of weights."""
    return LlamaConfig(
        vocab_size=256,
        hidden_size=384,
        intermediate_size=1024,
        num_layers=depth,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        max_positions=256,
        tie_embeddings=True,
    )


_CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
from compressjax.checkpoint import open_model
from compressjax.quantization import GPTQ
from compressjax.streaming import compress_model
source = open_model(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, 256, (4, 64))
compress_model(source, Path(sys.argv[2]), GPTQ(bits=3, group=64), tokens)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_checkpoint(folder: Path, cfg: LlamaConfig) -> int:
    """A random model as a sharded Hugging Face folder, one shard a block; returns its bytes of weights."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    placed, total = {}, 0
    for index in (None, *range(cfg.num_layers)):
        tensors = {}
        for module in rest_modules(cfg) if index is None else block_modules(cfg):
            shape = {"norm": (module.outputs,), "embedding": (module.inputs, module.outputs)}
            shape = shape.get(module.kind, (module.outputs, module.inputs))
            value = np.ones(shape) if module.kind == "norm" else rng.normal(0, 0.02, shape)
            tensors[f"{HF_NAMES.prefix(module.path, index)}.weight"] = value.astype(np.float32)
        name = f"part-{-1 if index is None else index}.safetensors"
        save_file(tensors, folder / name)
        placed |= dict.fromkeys(tensors, name)
        total += sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(hf_architecture(cfg, dtype="float32")))
    return total


def peak_bytes(folder: Path, depth: int, repository: Path) -> tuple[int, int]:
    """Bytes of a checkpoint's weights, and the peak resident memory of compressing it in a process of its own."""
    size = write_checkpoint(folder / f"dense-{depth}", config(depth))
    command = [sys.executable, "-c", _CHILD, str(folder / f"dense-{depth}"), str(folder / f"small-{depth}")]
    # Not the tests' four virtual devices, each with threads and memory of its own.
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=repository, env=plain, capture_output=True, text=True, check=True)
    return size, int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_gigabyte_is_compressed_in_less_than_half_of_it(tmp_path, repository):
    size, peak = peak_bytes(tmp_path, 172, repository)
    assert size > 2**30
    assert peak < size / 2, f"peak of {peak / 1e6:.0f} MB for a checkpoint of {size / 1e6:.0f} MB"
