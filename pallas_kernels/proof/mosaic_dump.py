"""PTX and launches of Mosaic GPU kernels, which XLA does not list with its own."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from pallas_kernels.proof.launch import Launch

_VARIABLE = "MOSAIC_GPU_DUMP_TO"
_HASH = re.compile(r'kernel_hash = "((?:[^"\\]|\\.)*)"')
_LAUNCH = re.compile(
    r"gpu\.launch .*?blocks\(.*?\) in \((?P<grid>.*?)\) threads\(.*?\) in \((?P<threads>.*?)\) "
    r"dynamic_shared_memory_size %c(?P<shared>\d+)"
)
Kernels = tuple[tuple[str, ...], dict[str, Launch]]

# Mosaic compiles a kernel once per process and dumps it only then; a program compiled again finds it here.
_seen: dict[tuple[str, ...], Kernels] = {}


@contextmanager
def dumping(folder: str) -> Iterator[Path]:
    """Context in which Mosaic writes what it makes of kernels below ``folder``; yields where."""
    below = Path(folder) / "mosaic"
    below.mkdir()
    with mock.patch.dict(os.environ, {_VARIABLE: str(below)}):
        yield below


def kernels(dump: Path, hlo: str) -> Kernels:
    """PTX, and launches by kernel name, of the Mosaic kernels of a compiled program.

    Args:
      dump: where they were written.
      hlo: of the program, which names its kernels by a hash.

    Raises:
      RuntimeError: for a program with a kernel that was compiled as part of another one, so that nothing was written.
    """
    names = tuple(sorted(set(_HASH.findall(hlo))))
    if not names:
        return (), {}
    texts = tuple(path.read_text(encoding="utf-8") for path in sorted(dump.glob("*.ptx")))
    if not texts:
        if names not in _seen:
            raise RuntimeError("a Mosaic kernel of this program was compiled before in this process, and not dumped")
        return _seen[names]
    launches = {}
    for path in sorted(dump.glob("*.ptx")):
        entry = re.search(r"\.entry (\w+)", path.read_text(encoding="utf-8"))
        launch = parse_launch(path.with_suffix(".mlir-passes.log").read_text(encoding="utf-8", errors="replace"))
        if entry and launch:
            launches[entry[1]] = launch
    _seen[names] = texts, launches
    return _seen[names]


def parse_launch(passes: str) -> Launch | None:
    """The first launch in the text that Mosaic's passes leave, or None."""
    found = _LAUNCH.search(passes)
    if found is None:
        return None
    grid, threads = (tuple(map(int, re.findall(r"= %c(\d+)", found[part]))) for part in ("grid", "threads"))
    count = 1
    for extent in threads:
        count *= extent
    return Launch(grid, count, int(found["shared"]))
