import importlib
import json
from pathlib import Path

import pytest

from compressjax.catalogue import FAMILIES, METHODS, Method, measured, method
from compressjax.driver import leaf_rule

BUILT = [entry for entry in METHODS if entry.state != "planned"]
SIZES = {
    "quantization": 8,
    "factorization": 6,
    "sparsity": 2,
    "kvcache": 5,
    "allocation": 3,
    "training": 8,
    "distributed": 2,
    "codecs": 8,
    "entropy": 3,
    "media": 4,
    "retrieval": 1,
    "science": 3,
    "evaluation": 6,
    "models": 2,
}


def test_every_system_is_listed_once():
    assert len({entry.slug for entry in METHODS}) == len(METHODS) == 61
    assert len({entry.paper for entry in METHODS}) == 61
    assert {family: sum(entry.family == family for entry in METHODS) for family in FAMILIES} == SIZES


def test_families_stand_together():
    families = [entry.family for entry in METHODS]
    assert list(dict.fromkeys(families)) == list(FAMILIES)
    assert sorted(families, key=list(FAMILIES).index) == families


@pytest.mark.parametrize("entry", BUILT, ids=lambda entry: entry.slug)
def test_a_built_method_has_config_test_and_claim(entry, repository):
    assert entry.test is not None and (repository / entry.test).is_file()
    assert entry.claim is not None and (repository / entry.claim).is_file()
    assert entry.figure is not None
    assert entry.config is not None
    module, _, name = entry.config.partition(":")
    cfg = getattr(importlib.import_module(module), name)()
    # Transforms, codecs and the like are called by themselves, not by the driver.
    assert leaf_rule.knows(cfg) == (entry.verb in {"quantize", "lowrank", "sparsify"})


def test_a_done_method_has_a_committed_claim_that_holds(repository):
    for entry in METHODS:
        path = repository / "benchmarks" / "results" / f"claims_{entry.slug}.json"
        result = json.loads(path.read_text()) if path.is_file() else {"holds": False}
        if entry.state == "done":
            assert result["holds"], entry.slug
        elif result["holds"]:
            script = importlib.import_module(f"benchmarks.claims.{entry.slug.replace('-', '_')}")
            assert set(result["parts"]) < set(script.PARTS), f"{entry.slug} is measured whole and holds"


def test_a_planned_method_promises_nothing():
    planned = [entry for entry in METHODS if entry.state == "planned"]
    assert all((entry.config, entry.test, entry.claim, entry.figure) == (None,) * 4 for entry in planned)


def test_every_claim_script_is_listed(repository):
    folder = repository / "benchmarks" / "claims"
    scripts = {path.name for path in folder.glob("*.py")} - {"__init__.py", "__main__.py", "harness.py"}
    assert scripts == {Path(entry.claim).name for entry in BUILT if entry.claim}


def test_method_by_name():
    assert method("gptq").paper == "2210.17323"
    assert method("gptq").url == "https://arxiv.org/abs/2210.17323"
    with pytest.raises(KeyError, match="no method 'gptqq'; known: gptq, spqr"):
        method("gptqq")


def entry(figure: str | None = "x") -> Method:
    return Method(slug="a", name="A", about="", paper="1", family="media", verb="apply", figure=figure)


def test_measured_reads_the_row_that_the_catalogue_names(tmp_path):
    assert measured(entry(), tmp_path) is None
    (tmp_path / "claims_a.json").write_text(json.dumps({"rows": [{"name": "y"}, {"name": "x", "ours": 2.0}]}))
    assert measured(entry(), tmp_path) == {"name": "x", "ours": 2.0}
    assert measured(entry(None), tmp_path) is None
    with pytest.raises(ValueError, match="claims_a.json has no row 'z'"):
        measured(entry("z"), tmp_path)
