"""``python -m benchmarks.quantize.row NAME [--quick]``: measures one row in a process of its own, prints it as JSON.

The peak of resident memory belongs to a process, so each row has one. It is read before the evaluation starts.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import language_model as lm
from benchmarks.claims.squeezellm import fisher_information
from benchmarks.one_process import named
from benchmarks.quantize.methods import Run, runs
from compressjax.checkpoint import load_model, open_model
from compressjax.driver import statistic_for
from compressjax.evaluation.perplexity import perplexity
from compressjax.freed_memory import map_large_arrays
from compressjax.ops import dense
from compressjax.quantization import quantize
from compressjax.streaming import compress_model


def measure(run: Run, quick: bool) -> dict:
    """Compresses and evaluates; ``quick`` takes two blocks and short windows, which only shows that it works."""
    count, windows, length = (2, 2, 64) if quick else (32, 8, 512)
    tokens = lm.calibration("wikipedia:train", count, length) if _needs_data(run) else None
    with tempfile.TemporaryDirectory(prefix="compressjax-bench-") as folder:
        bed = None if run.streaming else lm.smollm2(2 if quick else None)
        before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
        params = _streamed(run, tokens, Path(folder)) if bed is None else _in_memory(run, bed, tokens)
        wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, peak_mb()
        if params is None:
            params = load_model(Path(folder) / "model").params
    bed = lm.smollm2() if bed is None else bed
    text = lm.held_out("wikipedia:test", windows, length)
    return {
        "name": run.name,
        "method": run.method,
        "config": None if run.cfg is None else repr(run.cfg),
        "bits_per_weight": round(lm.bits_per_weight(params), 4),
        "perplexity": perplexity(bed.logits, params if run.inputs else dense(params), text).perplexity,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(peak),
        "peak_before_mb": round(before),
        "calibration_tokens": 0 if tokens is None else int(tokens.size),
    }


def _needs_data(run: Run) -> bool:
    return run.streaming or (run.cfg is not None and statistic_for(run.cfg) is not None)


def _in_memory(run: Run, bed: lm.TestBed, tokens: np.ndarray | None) -> dict:
    if run.cfg is None:
        return bed.params
    if tokens is None:
        params = quantize(bed.params, run.cfg)
    elif run.fisher:
        few = tokens.reshape(-1, tokens.shape[1] // 2)[:32]
        params = quantize(bed.params, run.cfg, stats=fisher_information(bed, few))
    else:
        params = lm.blockwise(bed, run.cfg, tokens)
    return jax.block_until_ready(params)


def _streamed(run: Run, tokens: np.ndarray | None, folder: Path) -> None:
    if tokens is None:
        raise ValueError(f"{run.name} needs calibration tokens")
    compress_model(open_model(lm.MODEL), folder / "model", run.cfg, tokens)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in units of 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(arguments: list[str] | None = None) -> int:
    """Measures one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize.row")
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(arguments)
    map_large_arrays()  # as the command line does
    print(json.dumps(measure(named(runs(), args.name), args.quick)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
