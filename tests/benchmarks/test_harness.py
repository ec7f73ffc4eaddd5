import json
import math
from types import SimpleNamespace

import pytest

from benchmarks.claims import __main__ as command
from benchmarks.claims.harness import Part, asserted, judge, not_comparable, printed, run_claim
from compressjax.catalogue import METHODS


def claim_script(parts):
    return SimpleNamespace(
        METHOD="toy",
        CLAIM="two is less than three",
        SETTING="integers",
        PARTS={name: Part(run=run, about=name, minutes=0.1) for name, run in parts.items()},
    )


def test_an_asserted_row_compares_below_its_limit():
    assert asserted("a", baseline=10, ours=3.9, limit=0.4)["holds"]
    assert asserted("a", baseline=10, ours=3, limit=0.4)["margin"] == pytest.approx(0.25)
    assert not asserted("a", baseline=10, ours=4.1, limit=0.4)["holds"]
    assert not asserted("a", baseline=10, ours=10)["holds"]
    assert asserted("a", baseline=10, ours=10, strict=False)["holds"]
    assert not asserted("a", baseline=10, ours=math.nan)["holds"]


def test_more_bits_than_the_baseline_are_not_fair():
    assert asserted("a", baseline=2, ours=1, bits=3.0, baseline_bits=3.0)["holds"]
    assert not asserted("a", baseline=2, ours=1, bits=3.1, baseline_bits=3.0)["holds"]
    assert asserted("a", baseline=2, ours=1, bits=3.1)["holds"]
    assert asserted("a", baseline=2, ours=1, bits=3.1, baseline_bits=3.0, equal_bits=False)["holds"]


def test_a_row_that_is_not_asserted_says_why():
    with pytest.raises(ValueError, match="row 'b' is not asserted and must say why"):
        printed("b", ours=1.0, why=" ")
    with pytest.raises(ValueError, match="row 'c' is not asserted"):
        not_comparable("c", why="")
    assert "holds" not in printed("b", ours=1.0, baseline=2.0, why="only shown")
    assert printed("b", ours=1.0, baseline=2.0, why="only shown")["margin"] == pytest.approx(0.5)


def test_only_asserted_rows_decide():
    rows = [asserted("a", baseline=2, ours=1), printed("b", ours=9, baseline=1, why="known to be worse")]
    assert judge(rows)
    assert not judge([*rows, asserted("c", baseline=1, ours=2)])
    with pytest.raises(ValueError, match="at least one asserted row"):
        judge(rows[1:])
    with pytest.raises(ValueError, match=r"occur twice: \['a'\]"):
        judge([rows[0], rows[0]])


def test_parts_are_kept_until_they_are_measured_again(tmp_path):
    value = {"a": 1.0}
    parts = {
        "one": lambda quick: [asserted("a", baseline=2.0, ours=value["a"])],
        "two": lambda quick: [printed("b", ours=5.0, why="shown")],
    }
    script = claim_script(parts)
    first = run_claim(script, results=tmp_path, log=lambda line: None)
    assert first["holds"] and [row["part"] for row in first["rows"]] == ["one", "two"]
    value["a"] = 3.0
    second = run_claim(script, parts=["one"], results=tmp_path, log=lambda line: None)
    assert second["holds"] is False
    assert [row["name"] for row in second["rows"]] == ["a", "b"]
    stored = json.loads((tmp_path / "claims_toy.json").read_text())
    assert stored == second
    assert stored["parts"]["two"] == first["parts"]["two"]
    assert {"method", "claim", "setting", "rows", "holds", "seconds", "command", "date", "machine"} <= set(stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims_toy.json"]


def test_a_part_that_left_the_script_leaves_the_result(tmp_path):
    keep = {"one": lambda quick: [asserted("a", baseline=2.0, ours=1.0)]}
    run_claim(claim_script({**keep, "old": lambda quick: [printed("b", ours=1.0, why="x")]}), results=tmp_path)
    result = run_claim(claim_script(keep), results=tmp_path)
    assert list(result["parts"]) == ["one"] and len(result["rows"]) == 1


def test_a_quick_run_is_no_evidence(tmp_path):
    script = claim_script({"one": lambda quick: [asserted("a", baseline=2.0, ours=1.0 if quick else 3.0)]})
    assert run_claim(script, quick=True, results=tmp_path)["holds"]
    assert list(tmp_path.iterdir()) == []


def test_a_failing_part_keeps_the_parts_before_it(tmp_path):
    def broken(quick):
        raise RuntimeError("out of memory")

    script = claim_script({"one": lambda quick: [asserted("a", baseline=2.0, ours=1.0)], "two": broken})
    with pytest.raises(RuntimeError, match="out of memory"):
        run_claim(script, results=tmp_path)
    stored = json.loads((tmp_path / "claims_toy.json").read_text())
    assert stored["holds"] is None and len(stored["rows"]) == 1


def test_unknown_parts_and_claims_without_assertions_are_refused(tmp_path):
    script = claim_script({"one": lambda quick: [printed("b", ours=1.0, why="shown")]})
    with pytest.raises(ValueError, match=r"toy has no part \['three'\]; parts are \['one'\]"):
        run_claim(script, parts=["three"], results=tmp_path)
    with pytest.raises(ValueError, match="at least one asserted row"):
        run_claim(script, results=tmp_path)


@pytest.mark.parametrize("ours, code", [(1.0, 0), (3.0, 1)])
def test_the_command_ends_with_1_where_a_claim_does_not_hold(monkeypatch, tmp_path, capsys, ours, code):
    script = claim_script({"one": lambda quick: [asserted("a", baseline=2.0, ours=ours)]})
    monkeypatch.setattr(command, "slugs", lambda: ["toy"])
    monkeypatch.setattr(command, "script", lambda slug: script)
    assert command.main(["--results", str(tmp_path)]) == code
    line, *more = capsys.readouterr().out.splitlines()
    assert more == []
    assert json.loads(line)["method"] == "toy"


def test_the_command_gives_no_verdict_on_a_quick_run(monkeypatch, tmp_path):
    script = claim_script({"one": lambda quick: [asserted("a", baseline=2.0, ours=3.0)]})
    monkeypatch.setattr(command, "slugs", lambda: ["toy"])
    monkeypatch.setattr(command, "script", lambda slug: script)
    assert command.main(["--quick", "--results", str(tmp_path)]) == 0


def test_the_command_lists_real_scripts(capsys):
    built = {entry.slug for entry in METHODS if entry.state != "planned"}
    assert set(command.slugs()) == built
    assert command.main(["--list"]) == 0
    assert "wikitext2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        command.main(["nothing"])
    assert refused.value.code == 2
