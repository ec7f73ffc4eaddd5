"""The attention in float64 with numpy, text by text: what every implementation is tested against."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.kv_attention.layout import UNSEEN, Codes
from pallas_kernels.mla_attention.layout import Latents, MLALayout, blocks_of


def restored(latents: Latents, layout: MLALayout, at: tuple[int, int]) -> np.ndarray:
    """Rows of one block of one text, ``[n, r + p]``."""
    if not isinstance(latents, Codes):
        return np.asarray(latents[at]).astype(np.float64)
    side = layout.side
    assert side is not None  # the layout of packed rows has one
    scale = np.asarray(latents.scale[at]).astype(np.float64)
    low = -scale * 2 ** (side.bits - 1) if latents.low is None else np.asarray(latents.low[at]).astype(np.float64)
    code = unpack(np.asarray(latents.codes[at]), layout.packing)
    token, channel = np.indices(code.shape)
    group = (token // side.group, channel) if side.axis == "channel" else (token, channel // side.group)
    return low[group] + scale[group] * code


def mla_attention_reference(
    q: Any, latents: Latents, start: Any, stop: Any, seen: Any, layout: MLALayout
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``acc``, ``m`` and ``l`` as the library's :class:`Softmax` has them."""
    q = np.asarray(q).astype(np.float64)
    batch, heads, _ = q.shape
    acc, m = np.zeros((batch, heads, layout.rank)), np.full((batch, heads), UNSEEN)
    total = np.zeros((batch, heads))
    for b in range(batch):
        rows = np.concatenate([restored(latents, layout, (c, b)) for c in range(blocks_of(latents))])
        token = np.arange(len(rows))
        among = (token >= int(start[b])) & (token < int(stop[b]))
        if seen is not None:
            among &= np.asarray(seen)[:, b].reshape(-1) != 0
        if among.any():
            scores = q[b] @ rows[among].T
            m[b] = scores.max(axis=1)
            weights = np.exp(scores - m[b][:, None])
            acc[b], total[b] = weights @ rows[among, : layout.rank], weights.sum(axis=1)
    return acc, m, total
