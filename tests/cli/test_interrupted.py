"""Ctrl-C."""

import signal
import subprocess
import sys
import time

from compressjax.streaming import compress as streaming

# A shell starts jobs in the background deaf to Ctrl-C, and processes below them stay so; a terminal's are not.
LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('compressjax', run_name='__main__', alter_sys=True)"
)
ROUNDING = ("--method", "rtn", "--bits", 4, "--group", 16)


def test_interrupted_run_goes_on_with_the_same_command(command, tiny, tmp_path, monkeypatch):
    write = streaming.write_shard

    def pressed(path, tree):
        if path.name == "block-00002.safetensors":
            raise KeyboardInterrupt
        return write(path, tree)

    words = ("compress", tiny, *ROUNDING, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "write_shard", pressed)
        ended = command(*words)
    assert ended.code == 130 and ended.out == "" and "Traceback" not in ended.err
    assert ended.err.endswith("compressjax: interrupted; the same command goes on where it was\n")
    assert not (tmp_path / "out").exists()
    first = (tmp_path / "out.partial" / "block-00000.safetensors").stat().st_mtime_ns
    assert command(*words).code == 0
    assert (tmp_path / "out" / "block-00000.safetensors").stat().st_mtime_ns == first


def test_the_signal_itself(repository, make_model, tmp_path):
    model, out = make_model(tmp_path / "deep", num_hidden_layers=150), tmp_path / "out"
    words = ["compress", model, *ROUNDING, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *map(str, words)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    first = tmp_path / "out.partial" / "block-00000.safetensors"
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == "" and "goes on where it was" in stderr and "Traceback" not in stderr
    assert not out.exists() and first.exists()
    assert not list(first.parent.glob(".*"))
