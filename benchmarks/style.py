"""One look for all plots."""

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


@contextmanager
def plotting() -> Iterator[Any]:
    """``matplotlib.pyplot`` without a display and with our settings; they are undone at the end."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        matplotlib.use("Agg")
        from matplotlib import pyplot

        yield pyplot
        pyplot.close("all")
