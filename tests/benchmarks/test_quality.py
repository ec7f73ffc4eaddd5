"""The comparison of all methods: its rows, its table and its picture."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import sentence_encoder
from benchmarks.one_process import chosen, measure_rows, named
from benchmarks.quality.methods import LIMITS, methods
from benchmarks.quality.other_models import main as other_models
from benchmarks.quality.other_models import methods as one_pass_methods
from benchmarks.quality.plot import plot
from benchmarks.tables import quality, quality_others


def row(name, family, column, bits, perplexity, within=True):
    return {
        "name": name,
        "family": family,
        "column": column,
        "bits_per_weight": bits,
        "perplexity": perplexity,
        "kl": perplexity / 100,
        "within": within,
        "tasks": {"a": 0.5, "a probability": 0.1, "b": 0.25, "b probability": 0.2},
        "cpu_seconds": 12.0,
    }


RESULT = {
    "setting": "a model",
    "command": "python -m benchmarks.quality",
    "date": "2026-01-01",
    "machine": {"cpu": "some", "cores": 2, "memory_gb": 4, "system": "Linux", "python": "3.11.7"},
    "versions": {"jax": "0.10.2"},
    "load": 0.0,
    "rows": [
        row("float32", "float32", 32, 32.0, 23.0),
        row("RTN, 3 bits", "RTN", 3, 3.3, 80.0),
        row("GPTQ, 3 bits", "GPTQ", 3, 3.3, 30.0),
        row("SqueezeLLM, 4 bits", "SqueezeLLM", 4, 4.375, 26.0, within=False),
    ],
}


def test_every_method_has_a_name_of_its_own_and_a_column():
    names = [method.name for method in methods()]
    assert len(set(names)) == len(names)
    assert {method.column for method in methods()} == {*LIMITS, 32}
    assert named(methods(), "GPTQ tuned, 2 bits").tuning.target == "original"
    with pytest.raises(ValueError, match="no row 'GPTQ, 5 bits'"):
        named(methods(), "GPTQ, 5 bits")


def test_the_table_marks_the_best_of_each_size_and_what_is_too_large(tmp_path):
    (tmp_path / "quality.json").write_text(json.dumps(RESULT))
    lines = quality(tmp_path).splitlines()
    found = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert "**30" in found["GPTQ, 3 bits"]
    assert "**" not in found["RTN, 3 bits"]
    assert "37.5" in found["RTN, 3 bits"]  # mean accuracy of both tasks, in percent; probabilities are left out
    assert "SqueezeLLM, 4 bits (over the limit)" in found


def test_the_picture_is_drawn(tmp_path):
    plot(RESULT, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_chosen_by_words():
    assert chosen(["a 2", "a 3", "b 3"], ["3"]) == ["a 3", "b 3"]
    assert chosen(["a", "b"], None) == ["a", "b"]
    with pytest.raises(ValueError, match=r"no row holds \['c'\]"):
        chosen(["a", "b"], ["c"])


def test_rows_measured_before_are_kept_and_a_failing_row_says_why(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [{"name": "old", "value": 1}]}))
    seen = []

    def measure(todo):
        module = "tests.benchmarks.one_row"
        return measure_rows(module, todo, ["new", "old"], path, "python", after=lambda row, _: seen.append(row["name"]))

    assert [found["name"] for found in measure(["new"])["rows"]] == ["new", "old"]
    assert [found["name"] for found in json.loads(path.read_text())["rows"]] == ["new", "old"]
    assert seen == ["new"]
    with pytest.raises(RuntimeError, match=r"tests.benchmarks.one_row bad failed:\n(.|\n)*no such row"):
        measure(["bad"])
    assert [found["name"] for found in json.loads(path.read_text())["rows"]] == ["new", "old"]


def test_other_networks_get_the_same_methods_and_a_table(tmp_path, capsys):
    families = {method.family for method in methods()}
    assert all(family in families for bits in (4, 3, 2) for family in one_pass_methods(bits, "encoder"))
    rows = [
        {"model": "encoder", "family": "float32", "column": 32, "bits_per_weight": 32.0, "distance": 0.0},
        {"model": "encoder", "family": "GPTQ", "column": 4, "bits_per_weight": 4.3125, "distance": 0.0208},
        {"model": "classifier", "family": "GPTQ", "column": 4, "bits_per_weight": 4.5, "agreement": 0.75},
    ]
    (tmp_path / "quality_others.json").write_text(json.dumps({**RESULT, "rows": rows}))
    table = quality_others(tmp_path)
    assert "| encoder | GPTQ, 4 bits | 4.312 | 0.0208 |" in table and "| 75.0 |" in table
    with pytest.raises(SystemExit):
        other_models(["--quick"])
    assert "name another folder" in capsys.readouterr().err


def test_distance_of_vectors_is_one_minus_their_cosine():
    x = jnp.asarray([[1.0, 0.0], [0.6, 0.8]])
    assert sentence_encoder.distance(x, x) == pytest.approx(0, abs=1e-6)
    assert sentence_encoder.distance(x, jnp.asarray([[0.0, 1.0], [0.6, 0.8]])) == pytest.approx(0.5)
