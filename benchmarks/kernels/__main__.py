"""``python -m benchmarks.kernels [OP ...] [--write]``: compiles every kernel for H100 and A100 with no GPU present.

Prints one table; ``--write`` also puts its rows in ``benchmarks/results/kernels_<op>.json``. Exit code 1 when a kernel
spills, misses its instruction, or moves more bytes than it should. Needs the packages of the ``kernels`` extra.
"""

import argparse
import importlib
import os
import sys
import time

from benchmarks.kernels.table import HEADER, cells
from benchmarks.provenance import RESULTS, provenance, read_result, write_result

PRODUCTS = ("affine_matmul", "codebook_matmul", "additive_matmul", "outlier_matmul", "sign_lowrank_matmul")
PASSES = (
    "quantize_pack",
    "blockwise_adam",
    "hadamard",
    "topk_pack",
    "group_sparse_matmul",
    "kv_attention",
    "mla_attention",
    "kv_append",
    "w4ax_matmul",
)
OPERATIONS = (*PRODUCTS, *PASSES)


def cases(op: str):
    """Cases of one operation."""
    return importlib.import_module(f"benchmarks.kernels.{op}").CASES


def merged(known: list[dict], fresh: list[dict], names: list[str]) -> list[dict]:
    """Known rows with the fresh ones in their places, in the order of the cases; rows of other cases are dropped."""
    rows = {(row["case"], row["target"]): row for row in (*known, *fresh)}
    order = {name: nth for nth, name in enumerate(names)}
    return sorted((row for row in rows.values() if row["case"] in order), key=lambda row: order[row["case"]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"among {', '.join(OPERATIONS)}; all when none is named")
    parser.add_argument("--only", default="", help="part of the name of the cases to compile")
    parser.add_argument("--gpu", choices=("H100", "A100"), help="one GPU instead of both")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/kernels_<op>.json")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.ops) - set(OPERATIONS))
    if unknown:
        parser.error(f"no operation {unknown[0]}; there are {', '.join(OPERATIONS)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from pallas_kernels.proof import toolchain
    from pallas_kernels.proof.report import examine
    from pallas_kernels.proof.targets import TARGETS

    lack = toolchain.missing()
    if lack:
        print(lack, file=sys.stderr)
        return 2
    targets = [target for name, target in TARGETS.items() if options.gpu in (None, name)]
    print(" | ".join(HEADER))
    worst = 0
    for op in options.ops or OPERATIONS:
        start, rows = time.process_time(), []
        for case in cases(op):
            if options.only not in case.name:
                continue
            for target in (target for target in targets if target.name in case.targets):
                row = examine(case, target)
                rows.append(row)
                print(" | ".join(cells(row)), flush=True)
                for problem in row["problems"]:
                    print(f"    PROBLEM: {problem}", flush=True)
                    worst = 1
        if options.write:
            command = f"python -m benchmarks.kernels {op} --write"
            seconds = round(time.process_time() - start, 1)
            path = RESULTS / f"kernels_{op}.json"
            known = read_result(path) or {"rows": []}
            rows = merged(known["rows"], rows, [case.name for case in cases(op)])
            write_result(path, {"op": op, **provenance(command), "seconds": seconds, "rows": rows})
    return worst


if __name__ == "__main__":
    sys.exit(main())
