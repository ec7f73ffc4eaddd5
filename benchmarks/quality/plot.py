"""Perplexity and KL by true size as a picture."""

from pathlib import Path

from benchmarks.style import COLOURS, plotting

_WORST = 1000.0  # beyond this a model no longer speaks; such rows are named, not drawn


def plot(result: dict, path: Path) -> None:
    """Draws a result of ``python -m benchmarks.quality``."""
    rows = [row for row in result["rows"] if row["family"] != "float32"]
    reference = [row["perplexity"] for row in result["rows"] if row["family"] == "float32"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    with plotting() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for axis, measure, most in ((axes[0], "perplexity", _WORST), (axes[1], "kl", 4.0)):
            for family in families:
                own = sorted((row["bits_per_weight"], row[measure]) for row in rows if row["family"] == family)
                own = [point for point in own if point[1] <= most]
                if own:
                    axis.plot(*zip(*own, strict=True), "-o", markersize=5, color=COLOURS.get(family), label=family)
            axis.set(yscale="log", xlabel="true bits per weight")
            for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                ticks(lambda value, _: f"{value:g}")
        axes[0].set(ylabel="perplexity, WikiText-2", title=f"Perplexity (rows over {_WORST:g} left out)")
        axes[1].set(ylabel="KL to the original, nats per token", title="Distance to the original")
        if reference:
            axes[0].axhline(reference[0], color="black", linewidth=1, linestyle=":")
            axes[0].annotate("float32", (0.01, reference[0]), xycoords=("axes fraction", "data"), va="bottom")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
        figure.savefig(path)
