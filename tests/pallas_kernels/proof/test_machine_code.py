"""Counting instructions in a disassembly."""

from pallas_kernels.proof.machine_code import count_kinds, instructions, tensor_core_instructions

CODE = """\
	.section	.text.first,"ax",@progbits
	.text.first:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @P0  LDGSTS.E.BYPASS.128 [R2], desc[UR4][R4.64] ;
        /*0020*/              @!P1 LDGSTS.E.BYPASS.64 [R2], desc[UR4][R4.64] ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/              @!UP0 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0080*/                   STL [R1], R0 ;
        /*0090*/                   F2FP.BF16.F32.PACK_AB R4, R5, R4 ;
        /*00a0*/                   I2FP.F32.U32 R4, R5 ;
        /*00b0*/                   UTMALDG.2D [UR8], [UR4] ;
	.text.second:
        /*0000*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;
        /*0010*/                   STG.E desc[UR4][R2.64], R4 ;
"""


def test_kinds_are_counted_per_kernel():
    names = instructions(CODE)
    assert [len(code) for code in names.values()] == [12, 2]
    counts = {kind: n for kind, n in count_kinds(names["first"]).items() if n}
    assert counts == {
        "tensor_core": 3,
        "tma": 1,
        "tma_load": 1,
        "copy_128": 1,
        "copy_narrow": 1,
        "load_128": 1,
        "load_narrow": 1,
        "local_memory": 1,
        "convert": 2,
        "int_to_float": 1,
    }
    assert {kind: n for kind, n in count_kinds(names["second"]).items() if n} == {"tensor_core": 1, "store_narrow": 1}


def test_tensor_core_instructions_keep_their_shape():
    assert tensor_core_instructions(instructions(CODE)["first"]) == {
        "HGMMA.64x64x16.F32.BF16": 1,
        "HMMA.16816.F32.BF16": 2,
    }
