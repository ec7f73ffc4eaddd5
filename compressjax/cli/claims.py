"""``compressjax claims``: the benchmarks that stand behind every figure."""

import json
import subprocess
import sys
from pathlib import Path

from compressjax.cli.arguments import Claims
from compressjax.cli.screen import Screen

ROOT = Path(__file__).resolve().parents[2]


def run(args: Claims, screen: Screen) -> None:
    """Runs ``python -m benchmarks.claims`` in a source checkout.

    Raises:
      FileNotFoundError: the library was installed without its benchmarks.
      RuntimeError: a claim does not hold or could not be run.
    """
    if not (ROOT / "benchmarks" / "claims").is_dir():
        raise FileNotFoundError(
            f"no benchmarks in {ROOT}: claims are run from a source checkout, the installed package leaves them out"
        )
    command = [sys.executable, "-m", "benchmarks.claims", *args.names]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if screen.json else None, text=True, check=False)
    if screen.json:
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        screen.finish({"command": "claims", "claims": [json.loads(line) for line in lines]})
    if done.returncode:
        raise RuntimeError(f"benchmarks.claims ended with exit code {done.returncode}")
