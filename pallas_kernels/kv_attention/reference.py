"""The attention in float64 with numpy: what every implementation is tested against."""

from typing import Any

import numpy as np

from pallas_kernels.affine_matmul.reference import unpack
from pallas_kernels.kv_attention.layout import UNSEEN, Codes, Fit, KVLayout, Past, Side


def restored(held: Codes, fit: Fit | None, side: Side, layout: KVLayout, at: tuple[int, int, int]) -> np.ndarray:
    """Keys or values of one block of one head, ``[n, width]``."""
    scale = np.asarray(held.scale[at], np.float64)
    low = -scale * 2 ** (side.bits - 1) if held.low is None else np.asarray(held.low[at], np.float64)
    code = unpack(np.asarray(held.codes[at]), layout.packing(side))
    value = np.zeros(code.shape)
    for token in range(layout.tokens):
        for channel in range(side.width):
            by_token = side.axis == "channel"
            group = (token // side.group, channel) if by_token else (token, channel // side.group)
            value[token, channel] = low[group] + scale[group] * code[token, channel]
    if fit is None:
        return value
    return value + np.asarray(fit.a[at], np.float64) @ np.asarray(fit.b[at], np.float64).T


def kv_attention_reference(
    q: Any, past: Past, start: Any, stop: Any, seen: Any, layout: KVLayout, bias: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``acc``, ``m``, ``l`` and scores, see :class:`Softmax`, head by head; scores that are not seen are -1e30."""
    q = np.asarray(q, np.float64)
    batch, heads, groups, _ = q.shape
    blocks = past.k.codes.shape[0]
    acc, m = np.zeros((batch, heads, groups, layout.value.width)), np.full((batch, heads, groups), UNSEEN)
    total = np.zeros((batch, heads, groups))
    found = np.full((blocks, batch, heads, groups, layout.tokens), UNSEEN)
    for b in range(batch):
        tokens = np.arange(blocks * layout.tokens)
        among = (tokens >= int(start[b])) & (tokens < int(stop[b]))
        if seen is not None:
            among &= np.asarray(seen)[:, b].reshape(-1) != 0
        if not among.any():
            continue
        for h in range(heads):
            places = [(c, b, h) for c in range(blocks)]
            k = np.concatenate([restored(past.k, past.k_fit, layout.key, layout, at) for at in places])[among]
            v = np.concatenate([restored(past.v, past.v_fit, layout.value, layout, at) for at in places])[among]
            scores = q[b, h] @ k.T
            if bias is not None:
                added = np.moveaxis(np.asarray(bias, np.float64)[:, b, h], 0, 1).reshape(groups, -1)
                scores = scores + added[:, among]
            flat = np.full((groups, blocks * layout.tokens), UNSEEN)
            flat[:, among] = scores
            found[:, b, h] = np.moveaxis(flat.reshape(groups, blocks, layout.tokens), 1, 0)
            m[b, h] = scores.max(axis=1)
            weights = np.exp(scores - m[b, h][:, None])
            acc[b, h], total[b, h] = weights @ v, weights.sum(axis=1)
    return acc, m, total, found
