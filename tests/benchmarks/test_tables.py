import json

import pytest

from benchmarks import tables
from benchmarks.claims.harness import asserted, printed
from benchmarks.provenance import RESULTS, machine, provenance, write_result
from compressjax.catalogue import METHODS


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_documents_show_the_committed_results(path):
    text = path.read_text(encoding="utf-8")
    assert tables.render(text, RESULTS) == text, f"{path.name} is out of date; run `make docs`"


def test_every_section_says_so_before_it_is_measured(tmp_path):
    for name, section in tables.SECTIONS.items():
        if name != "methods":
            assert section(tmp_path).startswith("Not measured yet; `python -m benchmarks."), name
    done = sum(entry.state == "done" for entry in METHODS)
    assert f"Of 61 systems {done} are done" in tables.methods(tmp_path)


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    text = "before\n<!-- results:trace -->\nold\n<!-- /results -->\nafter <!-- /results --> text\n"
    after = tables.render(text, tmp_path)
    assert "old" not in after and after.startswith("before\n<!-- results:trace -->\nNot measured")
    assert after.endswith("<!-- /results -->\nafter <!-- /results --> text\n")
    assert tables.render(after, tmp_path) == after


def test_bad_markers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no results called 'nothing'"):
        tables.render("<!-- results:nothing -->\n<!-- /results -->", tmp_path)
    with pytest.raises(ValueError, match="1 sections are opened by a marker and 0 are closed"):
        tables.render("<!-- results:trace -->\n", tmp_path)


def test_claims_become_tables(tmp_path):
    origin = provenance("python -m benchmarks.claims gptq")
    rows = [
        {"part": "gap", **asserted("3 bits, group 64: perplexity gap", baseline=1.0, ours=0.5, limit=0.6, bits=3.3)},
        {"part": "order", **printed("output error | RTN | 2 matrices, seen", ours=0.03, why="value")},
        {"part": "order", **printed("output error | RTN | 2 matrices, unseen", ours=0.04, why="value")},
        {"part": "wikitext2-3", **asserted("WikiText-2 perplexity, 3 bits", baseline=80.0, ours=30.5, bits=3.3)},
        {"part": "wikitext2-4", **printed("WikiText-2 perplexity, float32", ours=23.69, why="reference", bits=32)},
    ]
    claim = {"claim": "less is more", "rows": rows, "holds": True, **origin}
    write_result(tmp_path / "claims_gptq.json", claim)
    shown = tables.claims_gptq(tmp_path)
    assert "less is more. The claim holds." in shown
    assert "| 3 bits, group 64: perplexity gap | 0.6 | 0.5 | 3.3 | yes |" in shown
    assert "| RTN | 0.03 | 0.04 |" in tables.gptq_order(tmp_path)
    shown = tables.wikitext2(tmp_path)
    assert "| float32 | printed | - | 23.69 at 32 | (1) |" in shown and "\n1. Reference.\n" in shown
    assert "WikiText-2 perplexity, 3 bits: 30.5" in tables.methods(tmp_path)


def test_results_name_the_machine_but_no_host_or_path(tmp_path):
    text = json.dumps(provenance("make bench"))
    assert {"cpu", "cores", "memory_gb", "system", "python"} == set(machine())
    assert {"command", "date", "machine", "versions", "load"} == set(json.loads(text))
    assert "/" not in text.replace("make bench", "")


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_result(path, {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_committed_results_have_provenance(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [result] if "command" in result else result["rows"]
    assert all({"command", "date", "machine"} <= set(row) for row in rows)
    assert not any(word in path.read_text(encoding="utf-8") for word in ("/root", "/home", "/work", "/tmp"))
