"""The cable between two network namespaces, and what happens where a machine does not let one be made."""

import contextlib
import subprocess

import pytest

from benchmarks.comm import links, namespaces


def test_it_is_said_why_a_cable_cannot_be_made(monkeypatch, capsys):
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: None)
    assert links.main(["--quick"]) == 2
    assert "ip and tc are not installed" in capsys.readouterr().err
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    assert namespaces.refusal() == "it needs root to make network namespaces"


def test_a_worker_that_fails_is_named_with_its_words(monkeypatch):
    monkeypatch.setattr(links, "cable", lambda megabits: contextlib.nullcontext())
    monkeypatch.setattr(links, "inside", lambda name, *command: ["sh", "-c", "echo no such method >&2; exit 3"])
    with pytest.raises(RuntimeError, match="none at 5 Mbit/s failed:\nno such method"):
        links.measured("none", 5, 1, 1)


def test_both_ends_are_slowed_and_nothing_is_left():
    reason = namespaces.refusal()
    if reason is not None:
        pytest.skip(reason)
    with namespaces.cable(50):
        for name in namespaces.NAMES:
            command = ["tc", "-n", name, "qdisc", "show", "dev", namespaces.INTERFACE]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "tbf" in shown and "rate 50Mbit" in shown
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in left for name in namespaces.NAMES)
