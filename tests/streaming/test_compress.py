"""From disk to disk: same result as in memory, resumable to the same bytes, nothing half-written."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from compressjax.checkpoint import load_model, open_model
from compressjax.checkpoint.native_shard import read_shard, write_shard
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.quantization import GPTQ, RTN
from compressjax.sequential import quantize_blockwise
from compressjax.streaming import compress_model, partial_path, read_summary

METHOD = GPTQ(bits=3, group=32)
REFERENCE = Path(__file__).parent.parent / "models" / "reference" / "smollm2"


def tokens(source, windows=6, length=16):
    return np.random.default_rng(0).integers(0, source.config.vocab_size, (windows, length))


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def without_times(contents):
    """Folder contents with the one field that differs between runs, the wall time, cut from the manifest."""
    import json

    manifest = json.loads(contents["compressjax.json"])
    manifest["summary"].pop("seconds")
    return {**contents, "compressjax.json": manifest}


@pytest.fixture(scope="module")
def source():
    return open_model(REFERENCE)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("stream") / "small"
    return out, compress_model(source, out, METHOD, tokens(source), note={"calibration": "random"})


def test_equals_the_in_memory_result(source, finished):
    out, _ = finished
    model, original = load_model(out), load_model(REFERENCE)
    expected, _ = quantize_blockwise(LlamaBlocks(source.config), original.params, tokens(source), METHOD)
    assert jax.tree.structure(model.params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    ids = tokens(source)
    np.testing.assert_allclose(
        Llama(model.config).apply({"params": model.params}, ids),
        Llama(model.config).apply({"params": expected}, ids),
        atol=1e-5,
    )


def test_summary_counts_what_is_stored(source, finished):
    out, summary = finished
    assert read_summary(out) == summary
    assert summary.note == {"calibration": "random"}
    params = load_model(out).params
    assert summary.bytes == sum(a.nbytes for a in jax.tree.leaves(params))
    assert len(summary.matrices) == 7 * source.num_blocks
    weights = sum(row.parameters for row in summary.matrices)
    assert summary.compressed_parameters == weights
    mean = sum(row.bits * row.parameters for row in summary.matrices) / weights
    assert summary.bits_per_weight == pytest.approx(mean)
    on_disk = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    assert summary.bytes < on_disk < summary.bytes + 20_000


def test_rounding_is_named_as_not_better(source, tmp_path):
    summary = compress_model(source, tmp_path / "rtn", RTN(bits=3, group=32), tokens(source))
    assert summary.not_better == summary.matrices


def test_a_result_can_be_compressed_no_further_but_is_a_model(source, finished, tmp_path):
    out, _ = finished
    again = open_model(out)
    assert again.config == source.config
    assert again.fingerprint() != source.fingerprint()
    with pytest.raises(TypeError, match="GPTQ quantises dense weights, got a Affine leaf"):
        compress_model(again, tmp_path / "twice", METHOD, tokens(source))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("killed_after", [0, 1])
def test_resume_ends_with_the_same_bytes(source, finished, tmp_path, killed_after):
    class Killed(BaseException):
        """As good as a kill: nothing in the library catches it."""

    def die(done, total):
        if done > killed_after:
            raise Killed

    out = tmp_path / "resumed"
    with pytest.raises(Killed):
        compress_model(source, out, METHOD, tokens(source), note={"calibration": "random"}, progress=die)
    assert not out.exists() and partial_path(out).is_dir()
    before = {p.name: p.stat().st_mtime_ns for p in partial_path(out).glob("block-*")}
    assert len(before) == killed_after + 1
    compress_model(source, out, METHOD, tokens(source), note={"calibration": "random"})
    assert not partial_path(out).exists()
    for name, when in before.items():
        assert (out / name).stat().st_mtime_ns == when
    assert without_times(files(out)) == without_times(files(finished[0]))


def test_another_job_does_not_take_over(source, tmp_path):
    def die(done, total):
        raise KeyboardInterrupt

    out = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        compress_model(source, out, METHOD, tokens(source), progress=die)
    with pytest.raises(ValueError, match="interrupted run with another method"):
        compress_model(source, out, dataclasses.replace(METHOD, bits=4), tokens(source))
    with pytest.raises(ValueError, match="interrupted run with another calibration"):
        compress_model(source, out, METHOD, tokens(source)[:4])
    assert len(list(partial_path(out).glob("block-*"))) == 1
    summary = compress_model(source, out, dataclasses.replace(METHOD, bits=4), tokens(source), restart=True)
    assert "bits=4" in summary.method


def test_overwriting_is_asked_for(source, finished, tmp_path):
    out, _ = finished
    with pytest.raises(ValueError, match="exists already"):
        compress_model(source, out, METHOD, tokens(source))
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by compressjax"):
        compress_model(source, foreign, METHOD, tokens(source), overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_bad_tokens_leave_nothing(source, tmp_path):
    for bad, message in (
        (tokens(source)[:0], "windows >= 1"),
        (tokens(source, length=500), "exceed the context of 128"),
        (tokens(source) + 90, "range from .* to .*, the vocabulary has 97"),
    ):
        with pytest.raises(ValueError, match=message):
            compress_model(source, tmp_path / "bad", METHOD, bad)
    with pytest.raises(ValueError, match="match no weight"):
        compress_model(source, tmp_path / "bad", {"**/nothing": METHOD}, tokens(source))
    assert not list(tmp_path.iterdir())


def test_full_disk_keeps_finished_shards(source, tmp_path, monkeypatch):
    real = os.fsync
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return real(fd)

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "full"
    with pytest.raises(OSError, match="No space left"):
        compress_model(source, out, METHOD, tokens(source))
    assert not out.exists()
    assert sorted(p.name for p in partial_path(out).iterdir()) == [
        "block-00000.safetensors",
        "job.json",
        "rest.safetensors",
    ]
    monkeypatch.setattr(os, "fsync", real)
    assert compress_model(source, out, METHOD, tokens(source)).bits_per_weight > 3


def test_damaged_results_are_refused(source, finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    shard = copy / "block-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="block-00001.safetensors is damaged: a checksum"):
        load_model(copy)
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_model(copy)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks \['block-00001.safetensors'\]"):
        load_model(copy)


def test_shard_bytes_depend_on_the_tree_only(tmp_path):
    tree = {"b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": jax.numpy.ones(3, jax.numpy.bfloat16)}
    write_shard(tmp_path / "one", tree)
    write_shard(tmp_path / "two", tree)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = read_shard(tmp_path / "one")
    assert again["a"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(again["b"]["kernel"], tree["b"]["kernel"])


_CHILD = """
import sys
from pathlib import Path
import numpy as np
from compressjax.checkpoint import open_model
from compressjax.quantization import GPTQ
from compressjax.streaming import compress_model
source = open_model(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, source.config.vocab_size, (6, 16))
compress_model(source, Path(sys.argv[2]), GPTQ(bits=3, group=32), tokens, note={"calibration": "random"})
"""


def test_sigkill_at_any_moment_and_the_same_command_again(finished, tmp_path):
    """A real process, really killed, in the middle of the second block; run again, it ends with the same bytes."""
    out = tmp_path / "killed"
    command = [sys.executable, "-c", _CHILD, str(REFERENCE), str(out)]
    child = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    first = partial_path(out) / "block-00000.safetensors"
    deadline = time.monotonic() + 240
    while not first.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert first.exists() and not out.exists()
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent.parent)
    assert without_times(files(out)) == without_times(files(finished[0]))
