"""The choice with numpy, by a stable sort of each chunk."""

from typing import Any

import numpy as np

from pallas_kernels.topk_pack.layout import TopKLayout


def topk_pack_reference(x: Any, layout: TopKLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, places, and what is left, in the vector's dtype."""
    x = np.asarray(x)
    filled = np.zeros(layout.chunks(x.size) * layout.chunk, x.dtype)
    filled[: x.size] = x
    rows = filled.reshape(-1, layout.chunk)
    values, places = [], []
    for row in rows:
        first = np.argsort(-np.abs(row.astype(np.float64)), kind="stable")[: layout.k]
        places.append(np.sort(first))
        values.append(row[places[-1]].copy())
        row[places[-1]] = 0
    return np.stack(values), np.stack(places), rows.reshape(-1)[: x.size]
