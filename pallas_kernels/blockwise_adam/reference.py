"""The step in float64 with numpy, coded by trying every value of a map."""

from typing import Any, NamedTuple

import numpy as np

from pallas_kernels.blockwise_adam.layout import AdamLayout, Hyper, Moments


class AdamReference(NamedTuple):
    """Direction, moments before they are coded, and moved parameters (None without), float64 of the array's shape."""

    direction: np.ndarray
    m: np.ndarray
    v: np.ndarray
    p: np.ndarray | None


def blocks_of(a: Any, layout: AdamLayout) -> list[np.ndarray]:
    """The values of each block, short ones as they are."""
    a = np.asarray(a)
    rows, last, width = layout.rows(a.shape)
    return [row[at : at + width] for row in a.reshape(rows, last) for at in range(0, last, width)]


def decoded_reference(codes: Any, scale: Any, values: tuple[float, ...], layout: AdamLayout) -> np.ndarray:
    """``map[codes] * scale`` in float64."""
    codes = np.asarray(codes)
    exact = np.asarray(values, np.float32).astype(np.float64)
    parts = blocks_of(codes, layout)
    scaled = [exact[part] * float(s) for part, s in zip(parts, np.asarray(scale).reshape(-1), strict=True)]
    return np.concatenate(scaled).reshape(codes.shape)


def nearest_reference(value: Any, values: tuple[float, ...], layout: AdamLayout) -> np.ndarray:
    """What a moment reads back as after it was coded with the scale of its block, float64, signs not kept."""
    exact = np.asarray(values, np.float32).astype(np.float64)
    found = []
    for block in blocks_of(np.asarray(value, np.float64), layout):
        scale = np.max(np.abs(block))
        y = block / scale if scale > 0 else block
        found.append(exact[np.argmin(np.abs(exact[None] - y[:, None]), axis=1)] * scale)
    return np.concatenate(found).reshape(np.shape(value))


def blockwise_adam_reference(g: Any, moments: Moments, hyper: Hyper, p: Any, layout: AdamLayout) -> AdamReference:
    """The step of one array."""
    h = Hyper(*(float(value) for value in hyper))
    g = np.asarray(g).astype(np.float64)
    m = h.b1 * decoded_reference(moments.m_codes, moments.m_scale, layout.m_map, layout) + (1 - h.b1) * g
    v = h.b2 * decoded_reference(moments.v_codes, moments.v_scale, layout.v_map, layout) + (1 - h.b2) * g**2
    direction = m / h.correction1 / (np.sqrt(v / h.correction2 + h.eps_root) + h.eps)
    if p is not None:
        p = np.asarray(p).astype(np.float64)
        p = p - h.rate * (direction + h.decay * p)
    return AdamReference(direction, m, v, p)
