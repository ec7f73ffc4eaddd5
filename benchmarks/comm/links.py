"""``python -m benchmarks.comm.links [--quick]``: seconds of a training step over a slow cable, really slow.

Two processes in network namespaces of their own, joined by a cable that Linux' traffic control holds to a bandwidth,
train a small Llama over gloo, compressed and not. Bytes are those that the interface counted. Needs root and iproute2;
writes ``results/comm_links.json``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.comm.link_worker import METHODS
from benchmarks.comm.namespaces import ADDRESSES, INTERFACE, NAMES, cable, inside, refusal
from benchmarks.provenance import RESULTS, provenance, write_result

_ROOT = Path(__file__).resolve().parents[2]
_MEGABITS = (20, 100, 1000)
_PORT = 9876
_LAYERS = 4


def measured(method: str, megabits: float, steps: int, layers: int) -> dict:
    """One method over one cable.

    Raises:
      RuntimeError: a process failed; the message ends with what it wrote.
    """
    with cable(megabits):
        workers = [
            subprocess.Popen(
                inside(
                    NAMES[process],
                    *(sys.executable, "-m", "benchmarks.comm.link_worker", "--method", method),
                    *("--coordinator", f"{ADDRESSES[0]}:{_PORT}", "--process", str(process)),
                    *("--interface", INTERFACE, "--steps", str(steps), "--layers", str(layers)),
                ),
                cwd=_ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(2)
        ]
        try:
            ended = [worker.communicate(timeout=600) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
    for worker, (_, said) in zip(workers, ended, strict=True):
        if worker.returncode:
            raise RuntimeError(f"{method} at {megabits} Mbit/s failed:\n{said[-2000:]}")
    return {"megabits": megabits, **json.loads(ended[0][0].splitlines()[-1])}


def main(arguments: list[str] | None = None) -> int:
    """Measures every method over every cable; 2 where the machine does not let it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comm.links", description="Steps over slow cables.")
    parser.add_argument("--quick", action="store_true", help="one cable, two steps; shows that it works, not stored")
    args = parser.parse_args(arguments)
    reason = refusal()
    if reason is not None:
        print(f"cannot slow a cable here: {reason}", file=sys.stderr)
        return 2
    rows = []
    for megabits in _MEGABITS[1:2] if args.quick else _MEGABITS:
        for method in METHODS:
            rows.append(measured(method, megabits, *((2, 1) if args.quick else (10, _LAYERS))))
            print(rows[-1], flush=True)
    setting = (
        "Two processes on two cores, one device each, gloo over a cable between network namespaces that tbf holds to "
        f"a bandwidth each way; a Llama over bytes, {_LAYERS} blocks of width 256, 4 windows of 32 bytes; median of 10 "
        "steps, uniform plans (rank 4, 1 %, 4 bits)"
    )
    if not args.quick:
        result = {**provenance("python -m benchmarks.comm.links"), "setting": setting, "rows": rows}
        write_result(RESULTS / "comm_links.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
