"""The committed table: complete, within its bounds, and matched by what the compiler makes of the kernels today."""

import dataclasses
import json

import pytest

from benchmarks.kernels.__main__ import OPERATIONS, PASSES, PRODUCTS, cases
from benchmarks.kernels.table import HEADER, cells
from benchmarks.provenance import RESULTS
from pallas_kernels.proof.report import examine
from pallas_kernels.proof.targets import TARGETS

pytestmark = pytest.mark.kernels


def committed(op: str) -> dict:
    return json.loads((RESULTS / f"kernels_{op}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_case_is_committed_for_each_of_its_gpus_without_a_problem(op):
    rows = committed(op)["rows"]
    assert {(row["case"], row["target"]) for row in rows} == {
        (case.name, target) for case in cases(op) for target in case.targets
    }
    assert [(row["case"], row["problems"]) for row in rows if row["problems"]] == []
    assert all(len(cells(row)) == len(HEADER) for row in rows)


@pytest.mark.parametrize("op", OPERATIONS)
def test_traffic_of_decoding_is_the_floor(op):
    rows = [row for row in committed(op)["rows"] if row["decode"]]
    assert rows
    assert all(row["moved_bytes"] <= 1.05 * row["least_bytes"] for row in rows)


def test_decoding_moves_an_eighth_of_what_xla_does():
    """At up to 4 bits, at the layers of the two larger models; 8-bit codes cannot reach it by arithmetic."""
    rows = [row for op in PRODUCTS for row in committed(op)["rows"] if row["decode"] and "-w8g" not in row["case"]]
    large = [row for row in rows if not row["case"].startswith("SmolLM2")]
    assert len(large) > 40
    assert [row["case"] for row in large if row["xla_bytes"] < 8 * row["moved_bytes"]] == []
    small = [row for row in rows if row["case"].startswith("SmolLM2")]
    assert all(row["xla_bytes"] > 7.3 * row["moved_bytes"] for row in small)


@pytest.mark.parametrize("op", PASSES)
def test_passes_move_no_more_than_xla(op):
    """XLA fuses simple passes too; where it does, both move the same."""
    assert all(row["xla_bytes"] >= 0.99 * row["moved_bytes"] for row in committed(op)["rows"])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPERATIONS)
def test_a_fresh_compilation_is_no_worse(compiler, op, target):
    """Two cases of each operation; all of them are compiled by `make kernels`."""
    known = {row["case"]: row for row in committed(op)["rows"] if row["target"] == target}
    for case in (cases(op)[0], cases(op)[-1]):
        without_xla = dataclasses.replace(case, xla=None)
        assert_no_worse(examine(without_xla, TARGETS[target]), known[case.name])


def assert_no_worse(row, known):
    """Held to the committed row: nothing spilled, as many blocks on a multiprocessor, no more bytes, as wide loads."""
    assert row["problems"] == []
    assert row["moved_bytes"] <= known["moved_bytes"]
    assert len(row["kernels"]) == len(known["kernels"])
    for fresh, old in zip(row["kernels"], known["kernels"], strict=True):
        assert fresh["name"] == old["name"]
        assert fresh["blocks_per_sm"] >= old["blocks_per_sm"]
        assert set(fresh["tensor_core"]) == set(old["tensor_core"])
        assert fresh["loads_narrow"] <= old["loads_narrow"]
        assert fresh["int_to_float"] <= old["int_to_float"]


def test_a_worse_kernel_is_noticed():
    kernel = {"name": "k", "blocks_per_sm": 4, "tensor_core": {"HMMA": 1}, "loads_narrow": 2, "int_to_float": 0}
    row = {"problems": [], "moved_bytes": 10, "kernels": [kernel]}
    assert_no_worse(row, row)
    for field, value in (("blocks_per_sm", 3), ("tensor_core", {}), ("loads_narrow", 3), ("int_to_float", 1)):
        with pytest.raises(AssertionError):
            assert_no_worse(row | {"kernels": [kernel | {field: value}]}, row)
