"""The multi-host script on virtual devices and on real processes, killed and resumed."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "multihost" / "train.py"
# A warm-up, an adaptation inside the run, and a checkpoint before the kill.
SMALL = {"steps": 9, "batch": 4, "length": 16, "layers": 1, "width": 64, "period": 3, "warmup": 3, "every": 3}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
FLAGS += ["--family", "topk", "--base", "0.05", "--timeout", "20", "--patience", "120"]


def environment():
    env = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, (str(SCRIPT.parents[2]), env.get("PYTHONPATH"))))}


def launch(folder, *more):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *FLAGS, "--checkpoints", str(folder), *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, seconds=900):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pair(folder, *dies):
    """Two processes of two devices; the second with further arguments."""
    where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--virtual-devices", "2")
    return launch(folder, *where, "--process", "0"), launch(folder, *where, "--process", "1", *dies)


def losses(rows):
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.slow
def test_a_killed_job_goes_on_with_the_losses_of_one_that_was_not(tmp_path):
    code, rows, err = finished(launch(tmp_path / "whole", "--virtual-devices", "4"))
    assert code == 0, err
    whole = losses(rows)
    assert sorted(whole) == list(range(9))
    assert rows[0]["plan"] == [] and rows[-1]["plan"] != [] and rows[-1]["bytes"] < rows[0]["bytes"] / 2

    first, second = pair(tmp_path / "cut", "--die-after", "5")
    assert finished(second)[0] == 9
    died = time.monotonic()
    code, rows, err = finished(first)
    assert code != 0 and err.strip(), "the survivor must end, and say why"
    assert time.monotonic() - died < 20 + 120, "a heartbeat, or at worst a step's patience"
    before = losses(rows)

    first, second = pair(tmp_path / "cut")
    results = [finished(process) for process in (first, second)]
    assert [code for code, _, _ in results] == [0, 0], results
    after = losses(results[0][1])
    assert min(after) == 3, "the last checkpoint was that of step 3"
    assert results[1][1] == [], "process 0 alone prints"
    for found in (before, after):
        for step, value in found.items():
            # Sums over two processes are taken in another order than over one.
            assert value == pytest.approx(whole[step], rel=2e-4)


def test_arguments_are_checked(capsys):
    spec = importlib.util.spec_from_file_location("multihost_train", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for given, message in [
        (["--checkpoints", "x", "--processes", "2"], "--processes needs --coordinator"),
        (["--checkpoints", "x", "--steps", "0"], "--steps and --every must be at least 1"),
        ([], "--checkpoints"),
    ]:
        with pytest.raises(SystemExit):
            module.arguments(given)
        assert message in capsys.readouterr().err
