"""Perplexity and KL by true size as a picture."""

from pathlib import Path

from benchmarks.style import COLOURS, SPEAKS, plain_log_labels, plotting


def plot(result: dict, path: Path) -> None:
    """Draws a result of ``python -m benchmarks.quality``."""
    rows = [row for row in result["rows"] if row["family"] != "float32"]
    reference = [row["perplexity"] for row in result["rows"] if row["family"] == "float32"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    with plotting() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        for axis, measure, most in ((axes[0], "perplexity", SPEAKS), (axes[1], "kl", 4.0)):
            for family in families:
                own = sorted((row["bits_per_weight"], row[measure]) for row in rows if row["family"] == family)
                own = [point for point in own if point[1] <= most]
                if own:
                    axis.plot(*zip(*own, strict=True), "-o", markersize=5, color=COLOURS.get(family), label=family)
            axis.set(yscale="log", xlabel="true bits per weight")
            plain_log_labels(axis)
        axes[0].set(ylabel="perplexity, WikiText-2", title=f"Perplexity (rows over {SPEAKS:g} left out)")
        axes[1].set(ylabel="KL to the original, nats per token", title="Distance to the original")
        if reference:
            axes[0].axhline(reference[0], color="black", linewidth=1, linestyle=":")
            axes[0].annotate("float32", (0.01, reference[0]), xycoords=("axes fraction", "data"), va="bottom")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
        figure.savefig(path)
