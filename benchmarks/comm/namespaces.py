"""Two network namespaces with a cable of a given speed between them: Linux' ``ip`` and ``tc``, as root."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

NAMES = ("compressjax-a", "compressjax-b")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
INTERFACE = "cable"
_HOSTS = Path("/etc/netns")


def refusal() -> str | None:
    """Why this machine cannot make such a cable, or None."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} are not installed (package iproute2)"
    if os.geteuid() != 0:
        return "it needs root to make network namespaces"
    try:
        with cable(1000):
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        return f"the kernel does not let it: {error}"


@contextlib.contextmanager
def cable(megabits: float) -> Iterator[None]:
    """Both namespaces, joined at ``megabits`` per second each way; they are gone afterwards.

    Inside, the machine's own name stands for the namespace's address, which is how gloo finds what to listen on.
    """
    _remove()
    try:
        for name in NAMES:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", INTERFACE, "netns", NAMES[0], "type", "veth", "peer", INTERFACE, "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _run("ip", "-n", name, "link", "set", link, "up")
            # A bucket of a few milliseconds: much smaller ones cannot keep up with the kernel's clock.
            bucket = max(64_000, int(megabits * 1e6 / 8 * 0.004))
            rate = ("rate", f"{megabits}mbit", "burst", f"{bucket}", "latency", "400ms")
            _run("tc", "-n", name, "qdisc", "add", "dev", INTERFACE, "root", "tbf", *rate)
            folder = _HOSTS / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        yield
    finally:
        _remove()


def inside(name: str, *command: str) -> list[str]:
    """A command as it is run in a namespace."""
    return ["ip", "netns", "exec", name, *command]


def _remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(_HOSTS / name, ignore_errors=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
