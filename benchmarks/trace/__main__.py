"""``python -m benchmarks.trace [--quick]``: writes ``results/trace.json`` and ``results/trace.png``."""

import argparse
import sys
from pathlib import Path

from benchmarks.provenance import RESULTS, provenance, write_result
from benchmarks.trace.measure import FORMS, decoder, forward_times, gptq_times
from benchmarks.trace.plot import plot

WIDTHS = (64, 128, 256, 512, 1024)
DEPTHS = (2, 4, 8, 16, 32)
WIDTH, DEPTH = 128, 4  # held while the other varies


def measure(widths: tuple[int, ...], depths: tuple[int, ...], repeats: int) -> dict:
    """All rows, and the ratios that the documentation quotes."""
    rows = []
    for axis, points in (("width", widths), ("depth", depths)):
        for point in points:
            cfg = decoder(point, DEPTH) if axis == "width" else decoder(WIDTH, point)
            for form in FORMS:
                times = forward_times(cfg, form, repeats)
                rows.append({"axis": axis, "point": point, "form": form, **times})
                print(
                    f"{axis} {point:5} {form:9} trace {times['trace']:.3f} s, compile {times['compile']:.3f} s",
                    flush=True,
                )
    methods = [{"width": width, **gptq_times(width, repeats)} for width in widths]
    for row in methods:
        print(f"GPTQ width {row['width']:5} trace {row['trace']:.3f} s, compile {row['compile']:.3f} s", flush=True)
    return {"rows": rows, "gptq": methods, "ratios": ratios(rows)}


def ratios(rows: list[dict]) -> dict[str, float]:
    """Trace time of each compressed form relative to dense, the largest over all points; times last to first."""
    found = {}
    for kind in ("trace", "trace_again"):
        at = {(row["axis"], row["point"], row["form"]): row[kind] for row in rows}
        for form in FORMS[1:]:
            own = [value / at[axis, point, "dense"] for (axis, point, which), value in at.items() if which == form]
            found[f"{kind}, {form} over dense, largest"] = round(max(own), 3)
    for kind in ("trace", "compile"):
        for form in FORMS:
            for axis in ("width", "depth"):
                line = [row[kind] for row in rows if row["axis"] == axis and row["form"] == form]
                found[f"{kind}, {form}, by {axis}, last over first"] = round(line[-1] / line[0], 3)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description="Trace and compile time.")
    parser.add_argument("--quick", action="store_true", help="few points, once each; shows that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results")
    args = parser.parse_args(arguments)
    measured = measure((64, 128), (2, 4), 1) if args.quick else measure(WIDTHS, DEPTHS, 6)
    result = {
        **provenance("python -m benchmarks.trace" + (" --quick" if args.quick else "")),
        "setting": f"Llama decoder, 32 tokens; width varies at depth {DEPTH}, depth at width {WIDTH}; CPU seconds",
        **measured,
    }
    write_result(args.results / "trace.json", result)
    plot(result, args.results / "trace.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
