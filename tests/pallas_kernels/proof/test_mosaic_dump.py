"""PTX and launches of Mosaic kernels, found by hash also where a process compiles a program again."""

import pytest

from pallas_kernels.proof import mosaic_dump
from pallas_kernels.proof.launch import Launch

PASSES = (
    "%203 = gpu.launch async [%0] blocks(%arg2, %arg3, %arg4) in (%arg8 = %c8, %arg9 = %c4, %arg10 = %c1) "
    "threads(%arg5, %arg6, %arg7) in (%arg11 = %c384, %arg12 = %c1_0, %arg13 = %c1_1) "
    "dynamic_shared_memory_size %c215104_i32 {"
)
HLO = r'custom-call(%a), backend_config={kernel_hash = "SP\12H\"\C6", module = "ML\EF"}'


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(mosaic_dump, "_seen", {})


def test_a_launch_is_read():
    assert mosaic_dump.parse_launch(PASSES) == Launch((8, 4, 1), 384, 215104)
    assert mosaic_dump.parse_launch("no kernel here") is None


def test_a_program_without_such_kernels_has_none(tmp_path):
    assert mosaic_dump.kernels(tmp_path, "fusion(%a)") == ((), {})


def test_kernels_are_found_again(tmp_path):
    with mosaic_dump.dumping(str(tmp_path)) as dump:
        (dump / "k_0.ptx").write_text(".visible .entry k_kernel(")
        (dump / "k_0.mlir-passes.log").write_text(PASSES)
    first = mosaic_dump.kernels(dump, HLO)
    assert first == ((".visible .entry k_kernel(",), {"k_kernel": Launch((8, 4, 1), 384, 215104)})
    (tmp_path / "empty").mkdir()
    assert mosaic_dump.kernels(tmp_path / "empty", HLO) == first


def test_a_kernel_that_was_never_dumped_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="compiled before in this process, and not dumped"):
        mosaic_dump.kernels(tmp_path, HLO)
