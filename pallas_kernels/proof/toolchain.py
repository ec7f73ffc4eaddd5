"""Finding the assembler and the disassembler among the installed packages."""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

INSTALL = "pip install jax-cuda13-plugin nvidia-cuda-nvcc nvidia-cuda-nvdisasm"


def missing() -> str | None:
    """One sentence that says what is not installed for ahead-of-time compilation, or None when all is there."""
    lacks = [name for name in ("jax_cuda13_plugin", "jax_plugins.xla_cuda13") if _spec(name) is None]
    lacks += [tool for tool in ("ptxas", "nvdisasm") if find(tool) is None]
    return (
        f"kernels are not compiled: {lacks[0]} is not installed; `{INSTALL}` installs what is needed" if lacks else None
    )


def find(tool: str) -> Path | None:
    """Path of ``ptxas`` or ``nvdisasm``: the installed packages' before one on PATH, which may be older."""
    for folder in _folders():
        if (folder / tool).is_file():
            return folder / tool
    found = shutil.which(tool)
    return None if found is None else Path(found)


def environment(base: dict[str, str]) -> dict[str, str]:
    """``base`` with the packages' tools first on PATH, since XLA takes the first ``ptxas`` it finds there."""
    return base | {"PATH": os.pathsep.join([*map(str, _folders()), base.get("PATH", "")])}


def assemble(ptx: str) -> tuple[str, str]:
    """Assembles PTX for the architecture it names.

    Returns:
      What ``ptxas -v`` said about each kernel, and the machine code as ``nvdisasm`` prints it.

    Raises:
      RuntimeError: with the first lines of the message when the assembler refuses.
    """
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if target is None:
        raise RuntimeError("the PTX names no .target")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        said = _run([str(find("ptxas")), "-v", f"-arch={target[1]}", str(source), "-o", str(binary)])
        return said.stderr, _run([str(find("nvdisasm")), "-c", str(binary)]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: " + "\n".join(run.stderr.splitlines()[:5]))
    return run


def _spec(name: str):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None


def _folders() -> Iterator[Path]:
    for package, below in (("nvidia", "cu13/bin"), ("nvidia", "cu12/bin"), ("triton", "backends/nvidia/bin")):
        spec = _spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(root) / below).is_dir():
                yield Path(root) / below
