"""Freed arrays leave the process."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from compressjax.freed_memory import map_large_arrays

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

if sys.argv[1] == "mapped":
    map_large_arrays()
first = np.ones(30 << 20, np.uint8)
del first
before = resident_mb()
large, small = [], []
for _ in range(10):
    large.append(np.ones(8 << 20, np.uint8))
    small.append(np.ones(60_000, np.uint8))
del large
print(resident_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="speaks of glibc")
def test_large_arrays_leave_when_they_are_freed():
    def kept(how):
        run = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
        return float(run.stdout)

    assert kept("mapped") < 5 < kept("as it comes")
