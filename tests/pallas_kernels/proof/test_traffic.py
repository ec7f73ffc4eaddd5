"""Bytes read off a compiled program."""

import pytest

from pallas_kernels.proof.traffic import moved_bytes, operations, type_bytes

HLO = """\
HloModule jit_f, entry_computation_layout={(bf16[16,256]{1,0})->bf16[16,512]{1,0}}

%inner (a: f32[4]) -> f32[4] {
  ROOT %never = f32[4]{0} add(%a, %a)
}

ENTRY %main.1 (x.1: bf16[16,256], w.1: u32[32,512]) -> bf16[16,512] {
  %x.1 = bf16[16,256]{1,0} parameter(0)
  %w.1 = u32[32,512]{1,0} parameter(1)
  %flat = u32[16384]{0} bitcast(%w.1)
  %call.1 = f32[2,16,512]{2,1,0} custom-call(%x.1, %flat), custom_call_target="__gpu$xla.gpu.triton", api_version=4
  ROOT %sum.1 = bf16[16,512]{1,0} fusion(%call.1), kind=kInput, calls=%inner
}

%after (a: f32[4]) -> f32[4] {
  ROOT %never.2 = f32[4]{0} add(%a, %a)
}
"""


@pytest.mark.parametrize(
    "text, size",
    [
        ("bf16[16,256]{1,0}", 8192),
        ("f32[]", 4),
        ("pred[3]", 3),
        ("s4[3,3]", 5),
        ("(f32[2]{0}, u8[5]{0})", 13),
        ("f8e4m3fn[8]", 8),
    ],
)
def test_type_bytes(text, size):
    assert type_bytes(text) == size


def test_only_launched_operations_of_the_entry_count():
    found = operations(HLO)
    assert [(op.kind, op.target) for op in found] == [("custom-call", "__gpu$xla.gpu.triton"), ("fusion", "")]
    x, w, partial, out = 16 * 256 * 2, 32 * 512 * 4, 2 * 16 * 512 * 4, 16 * 512 * 2
    assert [op.bytes for op in found] == [x + w + partial, partial + out]
    assert moved_bytes(HLO) == x + w + 2 * partial + out


IN_PLACE = """\
HloModule jit_f

%written (old: u32[64,32], new: u32[1,32], at: s32[]) -> u32[64,32] {
  %old = u32[64,32]{1,0} parameter(0)
  %new = u32[1,32]{1,0} parameter(1)
  %twice = u32[1,32]{1,0} add(%new, %new)
  %at = s32[] parameter(2)
  ROOT %put = u32[64,32]{1,0} dynamic-update-slice(%old, %twice, %at, %at)
}

ENTRY %main (c: u32[64,32], x: u32[1,32], s: f16[8,2], at: s32[]) -> (u32[64,32], u32[64,32], f16[8,2]) {
  %c = u32[64,32]{1,0} parameter(0)
  %x = u32[1,32]{1,0} parameter(1)
  %s = f16[8,2]{1,0} parameter(2)
  %at = s32[] parameter(3)
  %bare = u32[64,32]{1,0} dynamic-update-slice(%c, %x, %at, %at)
  %fused = u32[64,32]{1,0} fusion(%bare, %x, %at), kind=kLoop, calls=%written
  %kernel = (u32[64,32], f16[8,2]) custom-call(%x, %fused, %s), output_to_operand_aliasing={{0}: (1, {}), {1}: (2, {})}
  ROOT %all = (u32[64,32]{1,0}, f16[8,2]{1,0}) tuple(%kernel)
}
"""


def test_what_changes_in_place_counts_by_what_is_written():
    slice_bytes, place = 32 * 4, 4
    assert [op.bytes for op in operations(IN_PLACE)] == [
        2 * slice_bytes + 2 * place,
        2 * slice_bytes + place,
        slice_bytes,
    ]
