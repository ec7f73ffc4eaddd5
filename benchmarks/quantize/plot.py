"""Perplexity, time and memory as a picture."""

from pathlib import Path

from benchmarks.style import COLOURS, SPEAKS, plain_log_labels, plotting


def plot(result: dict, path: Path) -> None:
    """Draws a result of ``python -m benchmarks.quantize``."""
    rows = [row for row in result["rows"] if row["method"] in COLOURS]
    reference = [row["perplexity"] for row in result["rows"] if row["method"] == "float32"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with plotting() as plt:
        figure, (quality, cost) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=(3, 2))
        for method in methods:
            points = sorted((row["bits_per_weight"], row["perplexity"]) for row in rows if row["method"] == method)
            own = [point for point in points if point[1] <= SPEAKS]
            if own:
                quality.plot(*zip(*own, strict=True), "-o", markersize=5, color=COLOURS[method], label=method)
        if reference:
            quality.axhline(reference[0], color="black", linewidth=1, linestyle=":")
            quality.annotate("float32", (0.01, reference[0]), xycoords=("axes fraction", "data"), va="bottom")
        quality.set(
            yscale="log",
            xlabel="true bits per weight",
            ylabel="perplexity",
            title=f"Quality by size (rows over {SPEAKS:g} left out)",
        )
        plain_log_labels(quality)
        quality.legend()
        bars = [row for row in rows if row["method"] not in ("RTN", "GPTQ") or ", 3 bits" in row["name"]]
        bars.sort(key=lambda row: row["cpu_seconds"])
        colours = [COLOURS[row["method"]] for row in bars]
        cost.barh([row["name"] for row in bars], [row["cpu_seconds"] for row in bars], color=colours)
        for place, row in enumerate(bars):
            cost.annotate(f" {row['peak_mb'] / 1000:.2f} GB peak", (row["cpu_seconds"], place), va="center", fontsize=9)
        cost.margins(x=0.35)
        cost.invert_yaxis()
        cost.grid(axis="y", visible=False)
        cost.set(xlabel="CPU seconds, compilation included", title="Cost")
        figure.savefig(path)
