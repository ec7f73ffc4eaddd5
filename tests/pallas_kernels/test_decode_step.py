"""A whole decoding step with the kernels inside, compiled for a GPU that is not there."""

import json

import pytest

from benchmarks.kernels import decode_step

pytestmark = pytest.mark.kernels

LINEARS = 7  # q, k, v, o, gate, up, down, each once in the body of the layers' loop


def check(facts):
    assert facts["kernels_in_program"] == LINEARS
    assert facts["kernels_through_xla"] == 0
    assert facts["temporary_bytes"] <= 0.05 * facts["dense_bytes"]
    # What XLA transposes of the cache for attention is as large as the cache; the rest is all there is beside it.
    assert facts["temporary_bytes"] - facts["cache_bytes"] <= 0.01 * facts["dense_bytes_replaced"]
    assert facts["temporary_bytes"] < facts["temporary_bytes_through_xla"]


def test_committed_step():
    check(json.loads(decode_step.RESULT.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_a_fresh_compilation_of_the_step(compiler):
    check(decode_step.examine_step())


def test_facts_are_read_off_the_program():
    hlo = """
  %a = u32[1,72,192]{2,1,0} fusion(%x, %i), kind=kCustom, calls=%fused_dynamic_slice.2, metadata={}
  %b = f16[1,9,192]{2,1,0} fusion(%y, %i), kind=kCustom, calls=%fused_dynamic_slice.3, metadata={}
  %c = bf16[3,64,1,1,512]{4,3,2,1,0} fusion(%z, %i), kind=kLoop, calls=%fused_dynamic_slice.4, metadata={}
  %d = bf16[1,192]{1,0} custom-call(%a, %b), custom_call_target="__gpu$xla.gpu.triton", api_version=4
"""
    assert decode_step.kernels_called(hlo) == 1
    assert decode_step.copied_bytes(hlo) == 4 * 72 * 192 + 2 * 9 * 192
