"""``python -m benchmarks.kernels.time [OP ...] [--tune]``: times the kernels on the GPU of this machine.

Runs the specs that the proofs compile: medians after a warm-up, percent of the memory bandwidth that the compulsory
bytes reach, and the same product through XLA (dequantise, then cuBLAS). ``--tune`` tries other block sizes and keeps
the fastest of each shape for later runs. ``--write`` adds ``benchmarks/results/kernels_time_<op>.json``.
"""

import argparse
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels.__main__ import OPERATIONS, cases
from benchmarks.provenance import RESULTS, provenance, write_result
from pallas_kernels.affine_matmul import affine_matmul
from pallas_kernels.affine_matmul.config import choose_config, tuning_key
from pallas_kernels.affine_matmul.specs import SPECS, AffineSpec
from pallas_kernels.backends import tuning
from pallas_kernels.backends.choose import needs_gpu
from pallas_kernels.product_config import ProductConfig
from pallas_kernels.proof.targets import TARGETS

# Weights of the calls in a row take this much memory together, several times any second-level cache.
_COLD_BYTES = 256 * 2**20
_MOST_CALLS = 64


def random_like(shapes: Any, seed: int) -> Any:
    """A tree of arrays of these shapes: random words for integers, normal numbers for floats."""
    rng = np.random.default_rng(seed)

    def one(a):
        if jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.asarray(rng.standard_normal(a.shape, np.float32) * 0.1, a.dtype)
        return jnp.asarray(rng.integers(0, np.iinfo(a.dtype).max, a.shape, a.dtype, endpoint=True))

    return jax.tree.map(one, shapes)


def seconds_per_call(
    fn: Callable[..., Any],
    shapes: Sequence[Any],
    *,
    samples: int = 20,
    cold_bytes: int = _COLD_BYTES,
    valid: Callable[[Any], Any] | None = None,
    in_place: bool = False,
) -> float:
    """Median time of one call when its weights are not in any cache.

    One jitted program makes a number of calls in a row, each with operands of its own, so that neither the launch of a
    program nor a warm cache counts. With ``in_place`` the result takes the memory of the first operand, and its
    place at the next run.
    """
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))
    calls = min(_MOST_CALLS, max(1, math.ceil(cold_bytes / size)))
    operands = [random_like(shapes, seed) for seed in range(calls)]
    operands = operands if valid is None else [valid(each) for each in operands]
    first, rest = [each[0] for each in operands], [each[1:] for each in operands]
    run = jax.jit(
        lambda first, rest: [fn(a, *b) for a, b in zip(first, rest, strict=True)],
        donate_argnums=0 if in_place else (),
    )
    times = []
    for nth in range(3 + samples):
        start = time.perf_counter()
        found = jax.block_until_ready(run(first, rest))
        if nth >= 3:
            times.append((time.perf_counter() - start) / calls)
        if in_place:
            first = found
    return statistics.median(times)


def bandwidth_of(kind: str) -> float | None:
    """Memory bandwidth of a GPU by the name its driver gives it, or None when it is not known."""
    return next((target.bandwidth for name, target in TARGETS.items() if name in kind), None)


def candidates(spec: AffineSpec) -> Iterator[ProductConfig]:
    """Block sizes around the ones chosen by rule."""
    base = choose_config(spec.m, spec.layout, jnp.dtype(spec.dtype))
    yield base
    for block_n in (16, 32, 64, 128):
        for splits in {1, 2, 4} if spec.m <= 16 else {1}:
            for stages in (2, 3, 4, 5):
                for warps in (2, 4, 8):
                    changed = dataclasses.replace(base, block_n=block_n, splits=splits, stages=stages, warps=warps)
                    if changed != base:
                        yield changed


def tune(spec: AffineSpec, samples: int) -> ProductConfig:
    """Times every candidate, keeps the fastest for later runs and returns it."""
    shapes = [a for a in spec.arguments() if a is not None]
    best, fastest = math.inf, None
    for config in candidates(spec):

        def call(x, codes, scale, zero=None, *, config=config):
            return affine_matmul(x, codes, scale, zero, spec.layout, implementation="triton", config=config)

        try:
            seconds = seconds_per_call(call, shapes, samples=samples)
        except jax.errors.JaxRuntimeError:  # blocks that do not fit the multiprocessor
            continue
        if seconds < best:
            best, fastest = seconds, config
    if fastest is None:
        raise RuntimeError(f"no block size of {spec.name} could be compiled")
    tuning.remember("affine_matmul", tuning_key(spec.m, spec.layout, jnp.dtype(spec.dtype)), fastest)
    return fastest


def made_for_this_gpu(case: Any) -> bool:
    """Whether a case is compiled for every GPU, or for one like this machine's."""
    if case.targets == tuple(TARGETS):
        return True
    capability = str(getattr(jax.devices()[0], "compute_capability", "none"))
    return capability in {"{}.{}".format(*TARGETS[name].capability) for name in case.targets}


def timed(op: str, only: str, samples: int, bandwidth: float | None) -> Iterator[dict[str, Any]]:
    """A row for each case of an operation."""
    for case in cases(op):
        if only not in case.name or not made_for_this_gpu(case):
            continue
        options: dict[str, Any] = {"samples": samples, "valid": case.valid, "in_place": bool(case.donate)}
        ours = seconds_per_call(case.fn, case.args, **options)
        row = {"case": case.name, "us": ours * 1e6, "least_bytes": case.least_bytes}
        if bandwidth is not None:
            row["percent_of_bandwidth"] = 100 * case.least_bytes / bandwidth / ours
        if case.xla is not None:
            row["xla_us"] = seconds_per_call(case.xla, case.args, **options) * 1e6
        yield row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"among {', '.join(OPERATIONS)}; all when none is named")
    parser.add_argument("--only", default="", help="part of the name of the cases to time")
    parser.add_argument("--samples", type=int, default=20, help="timings to take the median of")
    parser.add_argument("--tune", action="store_true", help="first look for the fastest block sizes (affine_matmul)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/kernels_time_<op>.json")
    options = parser.parse_args(argv)
    reason = needs_gpu()
    if reason is not None:
        print(f"nothing to time: {reason}", file=sys.stderr)
        return 2
    kind = jax.devices()[0].device_kind
    bandwidth = bandwidth_of(kind)
    if options.tune:
        for spec in SPECS:
            if options.only in spec.name:
                print(f"{spec.name}: {tune(spec, options.samples)}", flush=True)
    for op in options.ops or OPERATIONS:
        rows = []
        for row in timed(op, options.only, options.samples, bandwidth):
            rows.append(row)
            print(" | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        if options.write:
            command = f"python -m benchmarks.kernels.time {op} --write"
            result = {"op": op, "gpu": kind, **provenance(command), "timings": rows}
            write_result(RESULTS / f"kernels_time_{op}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
