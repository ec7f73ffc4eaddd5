"""Everything that can be wrong with what a user gives: one message, the right exit code, nothing half-written."""

import contextlib
import errno
import json
import resource
import shutil

import numpy as np
import pytest

from compressjax.streaming import compress as streaming

EVALUATION = ("--windows", 3, "--length", 32)


@pytest.fixture
def refused(command, tmp_path):
    """Runs ``compress`` and checks that it ends with ``code``, one line, and no trace of a result."""

    def run(model, *words, code=2, kept=()):
        before = set(tmp_path.iterdir())
        ended = command("compress", model, "--out", tmp_path / "out", *words)
        assert ended.code == code and ended.out == ""
        told = [line for line in ended.err.splitlines() if line.startswith("compressjax: error: ")]
        assert len(told) == 1 and "Traceback" not in ended.err
        assert {path.name for path in set(tmp_path.iterdir()) - before} == set(kept)
        return told[0]

    return run


def test_no_such_model(refused, tmp_path):
    assert "no model at" in refused(tmp_path / "nowhere")


def test_no_such_text(refused, tiny):
    assert "no text 'nowhere.txt'" in refused(tiny, "--calibration", "nowhere.txt", "--length", 32)


def test_truncated_weights(refused, tiny_copy, text):
    file = tiny_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused(tiny_copy, "--calibration", text, "--length", 32)


def test_unknown_architecture(refused, tiny_copy, text):
    raw = json.loads((tiny_copy / "config.json").read_text()) | {"model_type": "zap", "architectures": ["ZapForLM"]}
    (tiny_copy / "config.json").write_text(json.dumps(raw))
    assert "zap" in refused(tiny_copy, "--calibration", text)


def test_nan_in_the_weights(refused, tiny_copy, edit_tensors, text, method):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(tiny_copy, lambda tensors: tensors[name].__setitem__((0, 0), np.nan))
    words = (*method, "--calibration", text, "--windows", 8, "--length", 32)
    assert name in refused(tiny_copy, *words)


@pytest.mark.parametrize("content", ["", " \n "])
def test_empty_calibration_text(refused, tiny, tmp_path, content):
    empty = tmp_path / "empty.txt"
    empty.write_text(content)
    assert "holds no text" in refused(tiny, "--calibration", empty, "--length", 32)


def test_nan_in_a_jsonl_text(refused, tiny, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": NaN}\n')
    assert "line 1" in refused(tiny, "--calibration", bad, "--length", 32)


def test_window_longer_than_the_context(refused, tiny, text):
    told = refused(tiny, "--calibration", text, "--length", 65)
    assert "65" in told and "context of 64" in told


def test_text_shorter_than_the_windows(refused, tiny, text):
    assert "10000 windows" in refused(tiny, "--calibration", text, "--windows", 10000, "--length", 32)


def test_tokenizer_with_more_ids_than_the_model(refused, make_model, tmp_path, text):
    folder = make_model(tmp_path / "small", vocab_size=128)
    assert "tokenizer has ids up to 255" in refused(folder, "--calibration", text, "--length", 32)


def test_no_tokenizer(refused, tiny_copy, text):
    (tiny_copy / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(tiny_copy, "--calibration", text, "--length", 32)


def test_rule_that_matches_nothing(refused, tiny):
    assert "zap" in refused(tiny, "--method", "rtn", "--group", 16, "--rules", "zap=rtn")


def test_compressing_twice(refused, compressed):
    assert "compressed already" in refused(compressed)


def test_out_that_exists(command, tiny, tmp_path):
    kept = tmp_path / "out" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    words = ("compress", tiny, "--method", "rtn", "--group", 16, "--out", kept.parent)
    assert "exists already" in command(*words).err
    assert "not overwritten" in command(*words, "--overwrite").err
    assert kept.read_text() == "mine"


def test_overwrite_replaces_a_result(command, tiny, tmp_path):
    words = ("compress", tiny, "--method", "rtn", "--group", 16, "--out", tmp_path / "out", "--json")
    assert command(*words, "--bits", 2).code == 0
    assert command(*words, "--bits", 4).code == 2
    assert command(*words, "--bits", 4, "--overwrite").code == 0
    assert command("evaluate", tmp_path / "out", "--text", "nowhere").code == 2


@contextlib.contextmanager
def largest_file(size):
    """Files cannot grow beyond ``size`` bytes, the nearest thing to a full disk without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_grow_is_a_failure_and_resumes(refused, command, tiny, tmp_path):
    words = ("--method", "rtn", "--bits", 4, "--group", 16)
    with largest_file(8000):
        told = refused(tiny, *words, code=1, kept=["out.partial"])
    assert "File too large" in told
    assert not [path for path in (tmp_path / "out.partial").iterdir() if path.suffix == ".safetensors"]
    assert command("compress", tiny, *words, "--out", tmp_path / "out").code == 0
    assert not (tmp_path / "out.partial").exists()


def test_full_disk_in_the_middle_keeps_what_is_finished(refused, command, tiny, tmp_path, monkeypatch):
    write = streaming.write_shard

    def full(path, tree):
        if path.name == "block-00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, tree)

    words = ("--method", "rtn", "--bits", 4, "--group", 16)
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "write_shard", full)
        assert "No space left on device" in refused(tiny, *words, code=1, kept=["out.partial"])
    assert command("compress", tiny, *words, "--out", tmp_path / "out", "--json").code == 0


def test_full_disk_leaves_no_half_a_page(command, compressed, text, tmp_path):
    page = tmp_path / "page.html"
    with largest_file(1000):
        ended = command("report", compressed, "--out", page, "--text", text, *EVALUATION, "--max-new-tokens", 0)
    assert ended.code == 1 and "File too large" in ended.err
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_half_an_export(command, compressed, tmp_path):
    with largest_file(1000):
        ended = command("export", compressed, "--out", tmp_path / "out")
    assert ended.code == 1 and not list(tmp_path.iterdir())


def test_original_of_another_vocabulary(command, compressed, make_model, text, tmp_path):
    other = make_model(tmp_path / "other", vocab_size=300)
    ended = command("evaluate", compressed, "--text", text, *EVALUATION, "--against", other)
    assert ended.code == 2 and "vocabularies differ: other has 300 tokens, tiny 256" in ended.err


def test_original_that_is_gone_is_said(command, compressed, text, tmp_path, tiny):
    moved = tmp_path / "moved"
    shutil.copytree(compressed, moved)
    manifest = moved / "compressjax.json"
    manifest.write_text(manifest.read_text().replace(str(tiny), str(tmp_path / "gone")))
    ended = command("evaluate", moved, "--text", text, *EVALUATION, "--json")
    assert ended.code == 0 and "not compared with the original" in ended.err
    assert ended.result["original"] is None


def test_damaged_result(command, compressed, text, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(compressed, broken)
    shard = broken / "block-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    ended = command("evaluate", broken, "--text", text, *EVALUATION)
    assert ended.code == 2 and "block-00001" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words, part",
    [
        (("generate", "{model}", " "), "the prompt is empty"),
        (("generate", "{model}", "Hi", "--max-new-tokens", 100), "context of 64"),
        (("generate", "{model}", "Hi", "--temperature", -1), "Sampling.temperature"),
        (("report", "{tiny}"), "not written by compressjax"),
        (("report", "{model}", "--out", "nowhere/page.html"), "no folder"),
        (("report", "{model}", "--out", "."), "is a folder"),
        (("export", "{model}", "--out", "x", "--format", "zap"), "must be one of gptq, compressed-tensors, gguf"),
        (("export", "{tiny}", "--out", "x"), ""),
        (("evaluate", "{model}", "--tasks", "nowhere.jsonl"), "no file at nowhere.jsonl"),
        (("evaluate", "{model}", "--length", 1), "length must be at least 2"),
        (("quickstart", "--model", "nowhere"), "no model at nowhere"),
        (("quickstart", "--model", "{tiny}", "--bits", 1), "RTN.bits must be in 2..8"),
    ],
)
def test_other_commands_refuse(command, compressed, tiny, text, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    filled = [str(word).format(model=compressed, tiny=tiny) for word in words]
    extra = ("--text", text) if words[0] == "evaluate" else ()
    ended = command(*filled, *extra)
    assert ended.code == 2 and ended.out == "" and part in ended.err and "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())
