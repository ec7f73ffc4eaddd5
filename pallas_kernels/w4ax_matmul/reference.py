"""The product with numpy: codes and their sums as exact integers, scales and the sum over blocks in float64."""

from typing import Any, NamedTuple

import numpy as np

from pallas_kernels.w4ax_matmul.layout import W4AxLayout, W4AxWeight


class Rounded(NamedTuple):
    """Codes int64 ``[m, blocks, block]`` and scales float32 ``[m, blocks]``."""

    codes: np.ndarray
    scale: np.ndarray


def rounded_reference(x: Any, weight: W4AxWeight, layout: W4AxLayout) -> Rounded:
    """The activations as they are multiplied; float32 arithmetic, as it is part of what is defined."""
    x = np.asarray(x).astype(np.float32)
    if weight.perm is not None:
        x = x[:, np.asarray(weight.perm)]
    blocks = np.zeros((x.shape[0], layout.padded), np.float32)
    blocks[:, : layout.rows] = x
    blocks = blocks.reshape(-1, layout.blocks, layout.block)
    wide = np.arange(layout.blocks) < int(weight.n_hi)
    limit = np.where(wide, 2 ** (layout.hi_bits - 1) - 1, 2 ** (layout.lo_bits - 1) - 1).astype(np.float32)
    scale = np.float32(layout.act_clip) * np.abs(blocks).max(axis=-1) * (np.float32(1) / limit)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    bound = limit[:, None]
    codes = np.round(blocks * (np.float32(1) / scale)[..., None])
    return Rounded(np.clip(codes, -bound, bound).astype(np.int64), scale)


def weight_codes(weight: W4AxWeight, layout: W4AxLayout) -> np.ndarray:
    """Codes int64 ``[blocks, block, cols]`` in -8..7."""
    packed = np.asarray(weight.codes).astype(np.int64).reshape(layout.blocks, layout.half, layout.cols)
    codes = np.concatenate([packed % 16, packed // 16], axis=1)
    return np.where(codes > 7, codes - 16, codes)


def w4ax_reference(x: Any, weight: W4AxWeight, layout: W4AxLayout) -> np.ndarray:
    """``x @ w`` with ``x`` as rounded, float64."""
    codes, scale = rounded_reference(x, weight, layout)
    exact = np.einsum("mbk,bkr->mbr", codes, weight_codes(weight, layout))
    scales = scale.astype(np.float64)[..., None] * np.asarray(weight.scale).astype(np.float64)
    return np.sum(exact * scales, axis=1)
