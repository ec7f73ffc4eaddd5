"""Launches read off XLA's list, and compiling for a GPU that is not there."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.proof import toolchain
from pallas_kernels.proof.compile import Launch, compile_for, parse_launches
from pallas_kernels.proof.report import Case, examine, problems
from pallas_kernels.proof.targets import H100, TARGETS

THUNKS = """\
001: kKernel  affine_matmul_w4 grid: [8, 2, 1] threads: [128, 1, 1] args: [...] shared_memory: 36864
002: kKernel  loop_fusion grid: [64] threads: [32, 4] shared_memory: 0
"""


def test_launches_are_read():
    assert parse_launches(THUNKS) == {
        "affine_matmul_w4": Launch((8, 2, 1), 128, 36864),
        "loop_fusion": Launch((64,), 128, 0),
    }


def test_what_is_missing_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setattr(toolchain, "find", lambda tool: None)
    monkeypatch.setattr(toolchain, "_spec", lambda name: object())
    assert toolchain.missing() == (
        f"kernels are not compiled: ptxas is not installed; `{toolchain.INSTALL}` installs what is needed"
    )


def test_compiling_without_the_packages_is_refused(monkeypatch):
    monkeypatch.setattr(toolchain, "_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="kernels are not compiled"):
        compile_for(jnp.sin, (jax.ShapeDtypeStruct((4,), jnp.float32),), H100)


@pytest.mark.kernels
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_sum_compiles_for_each_gpu(compiler, target):
    """XLA's own kernel: made for the right architecture, and bytes that can be worked out by hand."""
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    case = Case(
        name="sum",
        kernel=".*",
        fn=jnp.add,
        args=(x, x),
        xla=None,
        least_bytes=3 * 4 * 1024 * 1024,
        step_bytes=0,
        tensor_core=False,
        decode=True,
    )
    row = examine(case, target)
    assert row["problems"] == []
    assert row["moved_bytes"] == row["least_bytes"]
    assert row["kernels"][0]["arch"] == target.arch


def facts(**changed):
    kernel = {"name": "k", "threads": 64, "spilled_bytes": 0, "local_memory": 0, "blocks_per_sm": 4, "loads_128": 48}
    kernel |= {"shared_bytes": 1024, "tensor_core": {"HMMA": 1}} | changed
    return {"kernels": [kernel], "moved_bytes": 104, "least_bytes": 100}


CASE = Case(
    name="k", kernel="k", fn=len, args=(), xla=None, least_bytes=100, step_bytes=4096, tensor_core=True, decode=True
)


def test_a_good_kernel_has_no_problem():
    assert problems(facts(), CASE) == []


@pytest.mark.parametrize(
    "changed, what",
    [
        ({"spilled_bytes": 8}, "8 bytes spilled"),
        ({"local_memory": 2}, "2 local-memory"),
        ({"blocks_per_sm": 0}, "do not fit"),
        ({"tensor_core": {}}, "no tensor-core"),
        ({"loads_128": 3}, "3 loads of 16 bytes, a step of the operand needs 4"),
    ],
)
def test_a_bad_kernel_is_told(changed, what):
    (problem,) = problems(facts(**changed), CASE)
    assert what in problem


def test_traffic_and_missing_kernels_are_told():
    assert "1.060 times" in problems(facts() | {"moved_bytes": 106}, CASE)[0]
    assert "0 kernels named k, expected 1" in problems(facts() | {"kernels": []}, CASE)[0]
