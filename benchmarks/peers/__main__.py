"""``python -m benchmarks.peers LIBRARY [--bits 3] [--group 64]``: adds a row to ``results/peers.json``."""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import language_model as lm
from benchmarks.one_process import run_module
from benchmarks.peers.checkpoint import write_plain_folder
from benchmarks.peers.libraries import LIBRARIES
from benchmarks.provenance import RESULTS, provenance, read_result, write_result
from compressjax.checkpoint import load_model, open_model


def main(arguments: list[str] | None = None) -> int:
    """Quantises with another library and evaluates the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Other libraries, same model.")
    parser.add_argument("library", choices=sorted(LIBRARIES))
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--text", choices=("wikitext2", "wikipedia"), default="wikitext2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    train, test, shape = {
        "wikitext2": ("wikitext2:valid", "wikitext2:test", (30, 1024)),
        "wikipedia": ("wikipedia:train", "wikipedia:test", (8, 512)),
    }[args.text]
    with tempfile.TemporaryDirectory(prefix="compressjax-peers-") as folder:
        plain, out, tokens = (Path(folder) / name for name in ("plain", "out", "tokens.npy"))
        write_plain_folder(open_model(lm.MODEL), plain)
        np.save(tokens, lm.calibration(train, 32, 512))
        call = (args.library, str(plain), str(out), str(tokens), str(args.bits), str(args.group))
        cost = run_module("benchmarks.peers.libraries", *call)
        params = load_model(out).params
    row = {
        "library": args.library,
        "bits": args.bits,
        "group": args.group,
        "text": args.text,
        "bits_per_weight": round(lm.bits_per_weight(params), 4),
        "perplexity": lm.perplexity_of(lm.smollm2(), params, lm.held_out(test, *shape)),
        **cost,
        **provenance(f"python -m benchmarks.peers {args.library} --bits {args.bits} --group {args.group}"),
    }
    path, keys = args.results / "peers.json", ("library", "bits", "group", "text")
    known = (read_result(path) or {"rows": []})["rows"]
    rows = [old for old in known if any(old[key] != row[key] for key in keys)]
    write_result(path, {"rows": [*rows, row]})
    print(f"{args.library}: perplexity {row['perplexity']:.2f} at {row['bits_per_weight']:.3f} bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
