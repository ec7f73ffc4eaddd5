"""KL and retrieval by true bytes as a picture."""

from pathlib import Path

from benchmarks.style import plain_log_labels, plotting


def plot(result: dict, path: Path) -> None:
    """Draws a result of ``python -m benchmarks.kv``; baselines are dashed."""
    with plotting() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
        colours = plt.get_cmap("tab20")
        for index, row in enumerate(result["rows"]):
            style = {"color": colours(index % 20), "linestyle": "--" if row["baseline"] else "-", "markersize": 5}
            for axis, measure in ((axes[0], "kl"), (axes[1], "needle_nll")):
                points = sorted((p["bytes"], p[measure]) for p in row["points"] if p[measure] is not None)
                if points:
                    label = row["name"] if axis is axes[0] else None
                    axis.plot(*zip(*points, strict=True), marker="o", label=label, **style)
        for axis in axes:
            axis.set(xscale="log", yscale="log", xlabel="true bytes, share of a plain 16-bit cache")
        plain_log_labels(axes[0])
        axes[0].set(ylabel="KL to the plain cache, nats per token", title="Text after a compressed prompt")
        axes[1].set(ylabel="nats per token of the code", title="A code hidden in the prompt")
        if result["rows"]:
            exact = result["rows"][0]["dense_needle_nll"]
            axes[1].axhline(exact, color="black", linewidth=1, linestyle=":")
            axes[1].annotate("plain cache", (0.01, exact), xycoords=("axes fraction", "data"), va="bottom")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
        figure.savefig(path)
