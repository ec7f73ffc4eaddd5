import subprocess
import sys

import pytest

from compressjax.cli import exits
from compressjax.cli.main import COMMANDS, main

STARTED = """
import sys
import compressjax.cli.main
try:
    compressjax.cli.main.main([{flag!r}])
finally:
    print(sorted({{"jax", "numpy", "orbax", "matplotlib", "tensorflow"}} & set(sys.modules)), file=sys.stderr)
"""


def test_help_names_every_command(command):
    ended = command("--help")
    assert ended.code == 0
    assert all(f"• {name}" in ended.out for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_every_flag(command, name):
    ended = command(name, "--help")
    assert ended.code == 0 and f"usage: compressjax {name}" in ended.out
    assert "--json" in ended.out and ended.err == ""


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_no_heavy_library_is_loaded_before_a_command_is_known(repository, flag):
    run = subprocess.run(
        [sys.executable, "-c", STARTED.format(flag=flag)], cwd=repository, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [(), ("compres",), ("compress",), ("compress", "model"), ("methods", "--jsn")])
def test_a_command_that_does_not_parse_is_the_users_mistake(command, words):
    ended = command(*words)
    assert ended.code == 2
    assert ended.out == "" and ended.err.strip() and "Traceback" not in ended.err


def test_version(command):
    ended = command("--version")
    assert ended.code == 0 and ended.out.startswith("compressjax 0.")


@pytest.mark.parametrize(
    "error, code, text",
    [
        (ValueError("bits must be 2"), 2, "bits must be 2"),
        (TypeError("tokens must be int"), 2, "tokens must be int"),
        (NotImplementedError("no rule"), 2, "no rule"),
        (FileNotFoundError("no model at x"), 2, "no model at x"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "x: No such file or directory"),
        (OSError(28, "No space left on device", "x/y"), 1, "x/y: No space left on device"),
        (RuntimeError("it broke"), 1, "RuntimeError: it broke"),
        (MemoryError(), 1, "MemoryError"),
        (KeyError("a"), 1, "KeyError: 'a'"),
    ],
)
def test_errors_become_codes_and_one_message(error, code, text):
    assert exits.exit_code(error) == code
    assert exits.message(error) == text


@pytest.mark.parametrize("debug", [False, True])
def test_a_failure_shows_its_traceback_only_on_request(command, monkeypatch, debug):
    def broken(args, screen):
        raise RuntimeError("it broke")

    monkeypatch.setattr("compressjax.cli.methods_table.run", broken)
    ended = command("methods", *(["--debug"] if debug else []))
    assert ended.code == 1 and ended.out == ""
    assert ("Traceback" in ended.err) == debug
    assert ended.err.splitlines()[-1].startswith("compressjax: error: RuntimeError: it broke")


def test_a_reader_that_leaves_early_is_no_error_message(repository):
    run = subprocess.run(
        f"'{sys.executable}' -m compressjax methods | head -n 1",
        shell=True,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.startswith("61 systems") and run.stderr == ""


def test_main_reads_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compressjax", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("compressjax")
