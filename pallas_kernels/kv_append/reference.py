"""The block in float64 with numpy, group by group as the table in ``layout`` is written down."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.kv_append.layout import AppendLayout


def codes_reference(words: Any, layout: AppendLayout) -> np.ndarray:
    """Codes ``[..., n, width]`` of words ``[..., W, width]``."""
    words = np.asarray(words)
    found = [unpack(one, layout.packing) for one in words.reshape(-1, *words.shape[-2:])]
    return np.stack(found).reshape(*words.shape[:-2], layout.tokens, layout.side.width)


def in_groups(a: np.ndarray, layout: AppendLayout) -> np.ndarray:
    """``[..., n, width]`` to ``[*shape of scale, group]``."""
    group, (*lead, tokens, width) = layout.side.group, a.shape
    if layout.side.axis == "token":
        return a.reshape(*lead, tokens, width // group, group)
    return np.swapaxes(a.reshape(*lead, tokens // group, group, width), -1, -2)


def statistics_reference(x: Any, keep: Any, layout: AppendLayout) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and low end of every group, before they are rounded to their dtype."""
    x = np.asarray(x).astype(np.float64)
    keep = np.ones(x.shape[:1] + x.shape[2:3], bool) if keep is None else np.asarray(keep) != 0
    values = in_groups(x, layout)
    counts = in_groups(np.broadcast_to(keep[:, None, :, None], x.shape), layout)
    steps = 2 ** (layout.side.bits - 1) - 1 if layout.side.sym else 2**layout.side.bits - 1
    scale, low = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1])
    for at in np.ndindex(scale.shape):
        own = values[at][counts[at]]
        span = 0.0
        if own.size:
            low[at] = own.min()
            span = np.abs(own).max() if layout.side.sym else own.max() - own.min()
        scale[at] = (span or 1.0) / steps
    return scale, None if layout.side.sym else low


def positions_reference(x: Any, scale: Any, low: Any, layout: AppendLayout) -> np.ndarray:
    """What codes are rounded from, ``[*shape of scale, group]``, by the statistics that were kept."""
    middle = 2 ** (layout.side.bits - 1) if layout.side.sym else 0
    values = in_groups(np.asarray(x).astype(np.float64), layout)
    start = 0.0 if low is None else np.asarray(low).astype(np.float64)[..., None]
    least, largest = (1, 2 * middle - 1) if layout.side.sym else (0, 2**layout.side.bits - 1)
    return np.clip((values - start) / np.asarray(scale).astype(np.float64)[..., None] + middle, least, largest)
