"""What ``ptxas -v`` says about a kernel, and how many blocks of it a multiprocessor holds."""

import dataclasses
import math
import re

from pallas_kernels.proof.targets import Target

_WARP = 32
_REGISTERS = 65536
_REGISTER_UNIT = 256  # registers are handed out to warps in this granularity
_MOST_WARPS = 64
_MOST_BLOCKS = 32
_RESERVED_SHARED = 1024  # the system keeps this much shared memory per block

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>\w+)'(?P<facts>.*?)(?=Compiling entry|\Z)", re.S
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one kernel asks of a multiprocessor: counts per thread, bytes for ``shared``."""

    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


def parse_ptxas(said: str) -> dict[str, Resources]:
    """Resources by kernel name from the text of ``ptxas -v``."""
    found = {}
    for entry in _ENTRY.finditer(said):
        facts = entry["facts"]
        found[entry["name"]] = Resources(
            arch=entry["arch"],
            registers=_number(r"Used (\d+) registers", facts),
            stack=_number(r"(\d+) bytes stack frame", facts),
            spill_stores=_number(r"(\d+) bytes spill stores", facts),
            spill_loads=_number(r"(\d+) bytes spill loads", facts),
            static_shared=_number(r"(\d+) bytes smem", facts),
        )
    return found


def _number(pattern, text):
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def blocks_per_multiprocessor(target: Target, threads: int, registers: int, shared: int) -> int:
    """Blocks that one multiprocessor holds at the same time.

    Args:
      target: the GPU.
      threads: threads of a block.
      registers: registers of a thread.
      shared: bytes of shared memory of a block, static and dynamic; 0 blocks when it is more than a block may have.
    """
    if shared > target.block_shared_bytes:
        return 0
    warps = math.ceil(threads / _WARP)
    per_warp = math.ceil(registers * _WARP / _REGISTER_UNIT) * _REGISTER_UNIT
    # Each of the four schedulers has a quarter of the registers, so whole warps fit per quarter.
    by_registers = (_REGISTERS // 4 // per_warp) * 4 // warps if registers else _MOST_BLOCKS
    by_shared = target.shared_bytes // (shared + _RESERVED_SHARED)
    return min(_MOST_WARPS // warps, by_registers, by_shared, _MOST_BLOCKS)
