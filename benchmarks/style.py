"""One look for all plots."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = {
    "dense": "#555555",
    "affine": "#1f6fb4",
    "codebook": "#d1603d",
    "RTN": "#8a8a8a",
    "RTN mse": "#b9b9b9",
    "GPTQ": "#1f6fb4",
    "GPTQ mse": "#5aa9e6",
    "GPTQ hessian": "#0b3c6f",
    "GPTQ k-means": "#d1603d",
    "GPTQ streaming": "#3f7fa6",
    "GPTQ tuned": "#0b3c6f",
    "SpQR": "#2f9e6e",
    "SqueezeLLM": "#a8641a",
    "decoupleQ": "#7a4fb5",
    "decoupleQ tuned": "#3d1f6b",
    "NUPES": "#c2478d",
    "COMET W4A8": "#6f9d1f",
    "COMET W4A4": "#b8c94a",
    "GQSA": "#c9a227",
    "BitStack": "#c0392b",
    "GPTQ + EoRA": "#1fa3b4",
    "decoupleQ + EoRA": "#1fa3b4",
    "GPTQ allocated": "#0e7c86",
    "SVD + GPTQ": "#946b5f",
    "SparseGPT": "#5f7494",
    "2:4": "#94865f",
}
"""Colour of a form or method wherever it appears."""

_RC = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


SPEAKS = 1000.0
"""Perplexity up to which rows are drawn; beyond it a model no longer speaks, and the scale would show nothing else."""


def plain_log_labels(axis: Any) -> None:
    """Labels a logarithmic y axis with plain numbers, and between powers of ten only as many as do not overlap."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    shown = {1, 2, 3, 4, 5, 6, 7, 8, 9} if high < 12 * low else {2, 5}
    axis.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if round(value / 10 ** math.floor(math.log10(value)), 6) in shown else ""
    )


@contextmanager
def plotting() -> Iterator[Any]:
    """``matplotlib.pyplot`` without a display and with our settings; they are undone at the end."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        matplotlib.use("Agg")
        from matplotlib import pyplot

        yield pyplot
        pyplot.close("all")
