"""The comparison of caches: families by size, and its picture."""

import json

from benchmarks.kv.methods import SHARES, families, named
from benchmarks.kv.plot import plot
from benchmarks.kv.table import filled, section

POINT = {
    "share": 0.25,
    "bytes": 0.24,
    "kl": 0.1,
    "nll_lost": 0.05,
    "nll_lost_error": 0.01,
    "kl_first_quarter": 0.1,
    "kl_last_quarter": 0.2,
    "needle_nll": 2.0,
    "speed": 0.5,
}
EXACT = {"dense_needle_nll": 0.1, "dense_needle_accuracy": 1.0}
ROWS = [
    {"name": "KIVI", "baseline": True, "points": [POINT, {**POINT, "share": 0.5, "kl": 0.01}], **EXACT},
    {"name": "TransMLA", "baseline": False, "points": [{**POINT, "kl": 0.05, "needle_nll": None}], **EXACT},
]
RESULT = {"rows": ROWS, "setting": "Here", "date": "2026-01-01", "command": "python -m benchmarks.kv"}


def test_families_have_names_of_their_own_and_configs_at_every_length():
    names = [family.name for family in families()]
    assert len(set(names)) == len(names) and sorted(SHARES, reverse=True) == list(SHARES)
    for family in families():
        assert named(family.name).name == family.name
        assert len({repr(cfg) for cfg in family.configs(1024)}) == len(family.configs(1024)) > 1
    assert sum(family.baseline for family in families()) == 5


def test_the_plot_is_drawn_from_json(tmp_path):
    plot(json.loads(json.dumps(RESULT)), tmp_path / "kv.png")
    assert (tmp_path / "kv.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_which_wins_where(tmp_path):
    assert "Not measured yet" in section(tmp_path)
    (tmp_path / "kv.json").write_text(json.dumps(RESULT))
    text = section(tmp_path)
    assert "| KIVI | 0.0100 | 0.1000 | - | - | 0.050 ± 0.010 | 2.00 | 2.00 | 0.50 |" in text
    assert "At 25 % TransMLA is first on text, KIVI in retrieval. Nothing fits 12.5 %." in text
    assert filled("<!-- kv -->\nold\n<!-- /kv -->", tmp_path) == f"<!-- kv -->\n{text}\n<!-- /kv -->"
