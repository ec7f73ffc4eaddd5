"""A save that is killed with SIGKILL at any moment leaves a checkpoint that loads: the old one or the new one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compressjax.checkpoint.saving import load, save

ROOT = Path(__file__).resolve().parents[2]

# One process imports everything and forks a saver per moment of death, before any backend (and its threads) exists.
# `audit` dies at the n-th file operation of Python on the checkpoint; `timed` is killed from outside while the storage
# driver, which is not Python, has written some of its data.
SERVER = """
import json, os, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from compressjax.checkpoint.saving import save
root, mode, moments = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
old = root / "template"
ended = {}

def saver(target, at):
    seen = 0
    events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")
    def hook(event, args):
        nonlocal seen
        if event in events and any(target.name in str(a) for a in args[:2]):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
    if mode == "audit":
        sys.addaudithook(hook)
    size = 4 if mode == "audit" else 1 << 22
    save(target, {"a": np.random.default_rng(0).normal(size=size), "version": 1})

def wait_for_data(staging):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            files = [p for p in staging.rglob("*") if p.parent.name == "d" and p.is_file()]
            if files:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.001)

for at in moments:
    target = root / f"m{at}"
    shutil.copytree(old, target)
    pid = os.fork()
    if pid == 0:
        try:
            saver(target, at)
        except BaseException:
            os._exit(3)
        os._exit(0)
    if mode == "timed":
        wait_for_data(root / f".{target.name}.compressjax-saving")
        time.sleep(at / 1000)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    ended[at] = "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    if ended[at] == 0:
        break
print(json.dumps(ended))
"""


def run(folder, mode, moments):
    save(folder / "template", {"a": np.zeros(4), "version": 0})
    command = [sys.executable, "-W", "ignore", "-c", SERVER, str(folder), mode, json.dumps(moments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return {int(at): end for at, end in json.loads(done.stdout.splitlines()[-1]).items()}


def check(folder, ended):
    """Every killed save left one whole version and the next save works and tidies up; returns the versions found."""
    versions = []
    for at, end in ended.items():
        target = folder / f"m{at}"
        tree = load(target)
        versions.append(tree["version"])
        np.testing.assert_array_equal(tree["a"][:4] == 0, tree["version"] == 0)
        if end == "killed":
            save(target, {"version": 2})
            assert load(target) == {"version": 2}
        assert not [p for p in folder.iterdir() if p.name.startswith(f".m{at}.")]
    return versions


def kills_at(tmp_path, moments):
    ended = run(tmp_path, "audit", moments)
    assert set(ended.values()) <= {"killed", 0}
    assert 0 in ended.values(), "the moments should go past the end of a save"
    versions = check(tmp_path, ended)
    assert versions == sorted(versions)
    assert 0 in versions and 1 in versions


def test_killed_at_some_file_operations(tmp_path):
    kills_at(tmp_path, [*range(2, 300, 17)])


@pytest.mark.slow
def test_killed_at_every_file_operation(tmp_path):
    kills_at(tmp_path, [*range(1, 600)])


def test_killed_while_data_is_being_written(tmp_path):
    ended = run(tmp_path, "timed", [0, 5])
    assert ended[0] == "killed"
    assert check(tmp_path, ended)[0] == 0
