"""Trace and compile time as a picture."""

from pathlib import Path

from benchmarks.style import COLOURS, plotting


def plot(result: dict, path: Path) -> None:
    """Draws a result of ``python -m benchmarks.trace``."""
    with plotting() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for panel, axis in zip(axes, ("width", "depth"), strict=False):
            for form in ("dense", "affine", "codebook"):
                rows = [row for row in result["rows"] if row["axis"] == axis and row["form"] == form]
                points = [row["point"] for row in rows]
                for kind, style in (("trace", "-o"), ("compile", "--s")):
                    values = [row[kind] for row in rows]
                    panel.plot(points, values, style, color=COLOURS[form], markersize=4, label=f"{form}, {kind}")
            _finish(panel, axis, f"forward pass by {axis}", result["rows"])
        axes[0].legend(fontsize=8, ncols=2, loc="upper left")
        for kind, style in (("trace", "-o"), ("compile", "--s")):
            rows = result["gptq"]
            axes[2].plot([r["width"] for r in rows], [r[kind] for r in rows], style, color=COLOURS["GPTQ"], label=kind)
        _finish(axes[2], "width", "GPTQ of one matrix by width", result["gptq"])
        axes[2].legend(fontsize=8)
        axes[0].set_ylabel("CPU seconds")
        figure.savefig(path)


def _finish(panel, axis, title, rows):
    panel.set_xscale("log", base=2)
    panel.set_xlabel(axis)
    panel.set_title(title)
    # Room above the lines: flat lines are the message, and the legend must not lie on them.
    panel.set_ylim(0, 1.7 * max(max(row["trace"], row["compile"]) for row in rows))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
