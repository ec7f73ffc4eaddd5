"""Imports point one way, files stay small and rightly named, and importing starts no backend."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From low to high: a module may import its own layer and lower ones, never a higher one. Families lean on each other.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(layer.split())
    for layer in (
        "_version catalogue dispatch freed_memory numerics",
        "ops",
        "leaf",
        "select",
        "models data adapters",
        "calibration checkpoint exchange",
        "driver",
        "sequential",
        "quantization factorization sparsity kvcache training distributed entropy codecs media retrieval science",
        "streaming",
        "allocation evaluation",
        "reporting",
        "cli",
        "__main__",
    )
)
LEVEL = {unit: level for level, layer in enumerate(LAYERS) for unit in layer}
# The package itself re-exports the verbs and is imported by nothing inside it but the top.
FACADE = "__init__"

MOST_LINES = 450
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base2", "v2"}


def modules(package: Path) -> list[Path]:
    """Every Python file of a package."""
    return sorted(package.rglob("*.py"))


def imported(path: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports anywhere in it, relative ones made absolute, with their lines.

    ``from a.b import c`` counts as ``a.b.c``: c may be a module. Imports under ``if TYPE_CHECKING`` count too, for a
    reader has to follow them all the same.
    """
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module.split(".") if node.module else ()))
            yield from ((".".join((*base, alias.name)), node.lineno) for alias in node.names)


def unit_of(path: Path, root: Path) -> str:
    """The folder or file directly under compressjax that a module belongs to."""
    first = path.relative_to(root / "compressjax").parts[0]
    return first.removesuffix(".py")


def unit_named(name: str, root: Path) -> str | None:
    """The unit of compressjax a dotted name lies in; the facade for names the package itself exports."""
    parts = name.split(".")
    if parts[0] != "compressjax":
        return None
    if len(parts) == 1:
        return FACADE
    package = root / "compressjax"
    is_module = (package / parts[1]).is_dir() or (package / f"{parts[1]}.py").is_file()
    return parts[1] if is_module else FACADE


def upward_imports(root: Path) -> list[str]:
    """Every import in ``root/compressjax`` that points to a higher layer or to the package itself."""
    found = []
    for path in modules(root / "compressjax"):
        unit = unit_of(path, root)
        if unit not in LEVEL:  # the package itself, or a unit that the test of LAYERS names
            continue
        for name, line in imported(path, root):
            target = unit_named(name, root)
            if target is None or target == unit or target not in {FACADE, *LEVEL}:
                continue
            allowed = unit == "__main__" or (target != FACADE and LEVEL[target] <= LEVEL[unit])
            if not allowed:
                found.append(f"{path.relative_to(root)}:{line}: {unit} imports {name}")
    return found


def test_every_unit_has_a_layer():
    units = {unit_of(path, ROOT) for path in modules(ROOT / "compressjax")} - {FACADE}
    assert units <= set(LEVEL), f"say in LAYERS where these stand: {sorted(units - set(LEVEL))}"


def test_imports_point_from_high_to_low():
    assert upward_imports(ROOT) == []


@pytest.mark.parametrize(
    "importer, statement",
    [
        ("ops/a.py", "from compressjax.leaf.affine import Affine"),
        ("leaf/a.py", "import compressjax.models.llama"),
        ("leaf/a.py", "from ..quantization import rtn"),
        ("numerics/a.py", "def f():\n    from compressjax import select"),
        ("dispatch.py", "from compressjax import quantize"),
        ("quantization/a.py", "from compressjax.allocation import knapsack"),
    ],
)
def test_an_upward_import_is_found(tmp_path, importer, statement):
    for unit in ("ops", "leaf", "models", "quantization", "numerics", "allocation"):
        (tmp_path / "compressjax" / unit).mkdir(parents=True)
    (tmp_path / "compressjax" / "select.py").touch()
    (tmp_path / "compressjax" / importer).write_text(statement)
    assert len(upward_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    "importer, statement",
    [
        ("leaf/a.py", "from compressjax.ops import matmul\nfrom ..numerics import bitpack\nfrom . import b"),
        ("quantization/a.py", "import jax\nfrom compressjax.factorization import svd"),
        ("__main__.py", "from compressjax.cli.main import main"),
    ],
)
def test_a_downward_import_is_let_through(tmp_path, importer, statement):
    for unit in ("ops", "leaf", "numerics", "quantization", "factorization", "cli"):
        (tmp_path / "compressjax" / unit).mkdir(parents=True)
    (tmp_path / "compressjax" / importer).write_text(statement)
    assert upward_imports(tmp_path) == []


def circles(root: Path, package: str) -> list[str]:
    """Modules of a package that reach themselves through imports, those inside functions included."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in modules(root / package)}
    graph = {
        name: {module for target, _ in imported(path, root) if (module := nearest(target, paths)) and module != name}
        for name, path in paths.items()
    }
    found = []
    for start in graph:
        seen, waiting = set(), [*graph[start]]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        found += [start] if start in seen else []
    return found


def nearest(target: str, paths: dict[str, Path]) -> str | None:
    """The module that ``from a.b import c`` runs: a.b.c, or a.b.c/__init__, or the same of a.b."""
    for name in (target, target.rpartition(".")[0]):
        for module in (name, f"{name}.__init__"):
            if module in paths:
                return module
    return None


@pytest.mark.parametrize("package", ["compressjax", "pallas_kernels"])
def test_no_module_imports_itself_in_a_circle(package):
    assert circles(ROOT, package) == []


def test_a_circle_is_found(tmp_path):
    (tmp_path / "compressjax" / "leaf").mkdir(parents=True)
    (tmp_path / "compressjax" / "leaf" / "__init__.py").write_text("from compressjax.leaf.affine import Affine")
    (tmp_path / "compressjax" / "leaf" / "affine.py").write_text("def f():\n    from compressjax.leaf import Sum")
    (tmp_path / "compressjax" / "leaf" / "sum.py").write_text("from .affine import Affine")
    assert circles(tmp_path, "compressjax") == ["compressjax.leaf.__init__", "compressjax.leaf.affine"]


def test_kernels_know_nothing_of_the_library():
    names = [(path, name) for path in modules(ROOT / "pallas_kernels") for name, _ in imported(path, ROOT)]
    assert [(str(path), name) for path, name in names if name.split(".")[0] == "compressjax"] == []


def test_files_are_small():
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(ROOT / "compressjax")}
    assert {str(path.relative_to(ROOT)): n for path, n in counts.items() if n > MOST_LINES} == {}


def test_names_say_what_is_inside():
    folders = ("compressjax", "pallas_kernels", "tests", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    assert [str(path.relative_to(ROOT)) for path in paths if path.stem in NAMES_THAT_SAY_NOTHING] == []


IMPORT_ALL = """
import importlib, json, pkgutil, sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **_: compiled.append(event))
import compressjax, pallas_kernels
names = [m.name for p in (compressjax, pallas_kernels) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
from jax._src import xla_bridge
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"tensorflow", "torch", "transformers"})
print(json.dumps({
    "modules": len(names), "backends": sorted(xla_bridge._backends), "compiled": compiled, "heavy": heavy,
    "x64": jax.config.jax_enable_x64, "precision": jax.config.jax_default_matmul_precision,
}))
"""


def test_import_does_no_work():
    """No module starts a backend, compiles anything, changes a flag of jax or pulls in another framework."""
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen.pop("modules") > 0
    assert seen == {"backends": [], "compiled": [], "heavy": [], "x64": False, "precision": None}
