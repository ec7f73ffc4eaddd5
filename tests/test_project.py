"""The promises of the project files: pinned locks, one version, one test command."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compressjax._version import __version__

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"3.11": "lock-py311.txt", "3.12": "lock-py312.txt"}
PINNED_FILES = (*LOCKS.values(), "models.txt")
ENTRY = re.compile(
    r"(?P<name>[a-z0-9._-]+)==(?P<version>[A-Za-z0-9.!+_-]+)( ; (?P<marker>[^-#@]+))?( --hash=sha256:[0-9a-f]{64})+"
)


def project() -> dict:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def entries(text: str) -> list[str]:
    """The requirements of a lock file, one a line, continuation lines joined and comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def pins(name: str) -> dict[str, str]:
    """Package to version, as a lock file pins them."""
    found = [ENTRY.fullmatch(entry) for entry in entries((ROOT / "requirements" / name).read_text(encoding="utf-8"))]
    return {match["name"]: match["version"] for match in found if match}


@pytest.mark.parametrize("name", PINNED_FILES)
def test_a_lock_holds_versions_and_hashes_and_nothing_else(name):
    """No index address, option, path or host, and no requirement without a hash."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert [entry for entry in entries(text) if not ENTRY.fullmatch(entry)] == []
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|--trusted-host| @ ", text)


@pytest.mark.parametrize(
    "entry",
    [
        "jax==0.10.2",
        "jax>=0.10 --hash=sha256:" + "0" * 64,
        "--index-url https://example.org/simple",
        "jax @ file:///wheels/jax.whl --hash=sha256:" + "0" * 64,
        "jax==0.10.2 --hash=md5:" + "0" * 32,
    ],
)
def test_the_lock_pattern_refuses(entry):
    assert not ENTRY.fullmatch(entry)


@pytest.mark.parametrize("python", LOCKS)
def test_a_lock_pins_what_pyproject_asks_for(python):
    described = project()["project"]
    extras = described["optional-dependencies"]
    asked = [*described["dependencies"], *extras["test"], *extras["lint"], *extras["notebooks"]]
    locked = pins(LOCKS[python])
    for requirement in map(Requirement, [*asked, *project()["dependency-groups"]["build"]]):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{LOCKS[python]} lacks {requirement.name}; run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} against {version}; run `make lock`"


def test_locks_cover_the_oldest_and_newest_jax():
    assert pins(LOCKS["3.11"])["jax"].startswith("0.10.")
    assert pins(LOCKS["3.12"])["jax"].startswith("0.12.")


def test_a_lower_bound_is_a_version_that_is_tested():
    """Python 3.11 resolves to the oldest versions, so nothing it pins may lie below a bound nor bounds above it."""
    locked = pins(LOCKS["3.11"])
    bounded = [Requirement(text) for text in project()["project"]["dependencies"]]
    assert all(any(part.operator == ">=" for part in requirement.specifier) for requirement in bounded)
    assert all(requirement.specifier.contains(locked[canonicalize_name(requirement.name)]) for requirement in bounded)


def test_models_are_pinned_as_asked():
    asked = entries((ROOT / "requirements" / "models.in").read_text(encoding="utf-8"))
    assert pins("models.txt") == dict(line.split("==") for line in asked)


def test_changelog_has_this_version():
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == __version__


def commands_in_ci() -> list[str]:
    """The make commands of .ci/run, in order."""
    return re.findall(r"^make .+$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_ci_runs_lint_and_then_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", readme, re.DOTALL)
    # A comment after the command in the README is not part of it.
    shown = [re.sub(r"\s+#.*", "", line.strip()) for block in blocks for line in block.splitlines()]
    lint, test = commands_in_ci()
    assert lint == "make lint"
    assert test in shown, f"README.md shows no block with `{test}`"


def test_every_target_named_in_the_documents_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = set(re.findall(r"\bmake ([a-z-]+)(?=`|$| [A-Z#])", text, re.MULTILINE))
        assert named <= targets, f"{name} names targets the Makefile lacks: {sorted(named - targets)}"
