"""Reading the assembler's summary, and occupancy against cases worked out by hand."""

import pytest

from pallas_kernels.proof.resources import Resources, blocks_per_multiprocessor, parse_ptxas
from pallas_kernels.proof.targets import A100, H100

SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    16 bytes stack frame, 132 bytes spill stores, 48 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
"""


def test_every_kernel_is_read():
    assert parse_ptxas(SAID) == {
        "first": Resources(arch="sm_90a", registers=96, stack=0, spill_stores=0, spill_loads=0, static_shared=0),
        "second": Resources(
            arch="sm_80", registers=255, stack=16, spill_stores=132, spill_loads=48, static_shared=2048
        ),
    }


def test_nothing_said_is_no_kernel():
    assert parse_ptxas("ptxas info    : 0 bytes gmem\n") == {}


@pytest.mark.parametrize(
    "target, threads, registers, shared, blocks",
    [
        (H100, 1024, 32, 0, 2),  # 64 warps
        (H100, 32, 16, 0, 32),  # no more than 32 blocks
        (H100, 128, 255, 0, 2),  # 256 * 32 registers a warp: two warps per quarter
        (H100, 256, 128, 0, 2),  # four warps per quarter
        (H100, 128, 32, 100 * 1024, 2),
        (H100, 128, 32, 227 * 1024, 1),
        (H100, 128, 32, 227 * 1024 + 1, 0),
        (A100, 128, 32, 164 * 1024, 0),
        (A100, 128, 96, 54 * 1024, 2),
        (A100, 64, 168, 0, 6),  # 5376 registers a warp: three warps per quarter
    ],
)
def test_blocks_per_multiprocessor(target, threads, registers, shared, blocks):
    assert blocks_per_multiprocessor(target, threads, registers, shared) == blocks
