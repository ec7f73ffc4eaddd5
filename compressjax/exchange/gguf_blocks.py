"""Affine weights as GGUF blocks of 32: ``Q4_0``, ``Q4_1`` and ``Q8_0``.

A block is 32 weights of one output, consecutive along the inputs, with a float16 step ``d``: ``w = d * (q - 8)`` with
4-bit ``q`` in Q4_0, ``w = d * q + m`` with a float16 ``m`` in Q4_1, ``w = d * q`` with int8 ``q`` in Q8_0
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block layouts in ggml-common.h).
"""

from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from compressjax.leaf import Affine, unpack_codes, unpack_zeros

BLOCK = 32


def block_kind(leaf: Any, path: str) -> GGMLQuantizationType:
    """Block type that holds a leaf, stacked or not.

    Integer offsets ``code - zero`` of up to 3 bits, and of 4 bits around the middle code, fit Q4_0; 4-bit codes with
    zero points of their own take Q4_1, whose float16 minimum ``-scale * zero`` is rounded (by at most 0.8 % of a step);
    wider offsets take Q8_0.

    Args:
      leaf: a compressed leaf.
      path: what to call it in messages.

    Raises:
      ValueError: no block type holds it; names ``path`` and the reason.
    """
    if not isinstance(leaf, Affine):
        raise ValueError(
            f"{path}: GGUF's blocks of {BLOCK} hold uniform integers with a scale, so a {type(leaf).__name__} leaf "
            "cannot be exported; quantise it to an Affine leaf, or make it dense first"
        )
    if leaf.shape[0] % BLOCK:
        raise ValueError(f"{path}: GGUF stores blocks of {BLOCK} inputs, which do not divide {leaf.shape[0]}")
    if leaf.zero_kind == "real":
        if leaf.bits > 4:
            raise ValueError(f"{path}: real zero points go into 4-bit blocks only, this leaf has {leaf.bits} bits")
        return GGMLQuantizationType.Q4_1
    if leaf.bits <= 3 or (leaf.bits == 4 and leaf.zero_kind == "none"):
        return GGMLQuantizationType.Q4_0
    if leaf.bits == 4:
        return GGMLQuantizationType.Q4_1
    if leaf.bits == 8 and leaf.zero_kind == "int":
        raise ValueError(f"{path}: GGUF's 8-bit blocks have no zero point, this leaf does; quantise it symmetrically")
    return GGMLQuantizationType.Q8_0


def pack_blocks(leaf: Affine, path: str) -> tuple[GGMLQuantizationType, np.ndarray]:
    """Bytes of one leaf ``[in, out]``.

    Args:
      leaf: an unstacked leaf.
      path: what to call it in messages.

    Returns:
      The block type, and uint8 ``[out, in / 32 * bytes of a block]``.

    Raises:
      ValueError: as :func:`block_kind`; groups that cut through a block; a step beyond float16.
    """
    kind = block_kind(leaf, path)
    groups = _block_groups(leaf, path)
    outputs, blocks = leaf.shape[1], len(groups)
    codes = np.asarray(unpack_codes(leaf)).T.astype(np.int32).reshape(outputs, blocks, BLOCK)
    scale = np.asarray(leaf.scale).astype(np.float32).T[:, groups]
    zero = np.asarray(unpack_zeros(leaf)).T[:, groups]
    step = _half(scale, path, "scale")
    if kind == GGMLQuantizationType.Q4_1:
        minimum = _half(-scale * zero, path, "minimum")
        parts = [step, minimum, _nibbles(codes)]
    else:
        offset = codes - zero.astype(np.int32)[..., None]
        parts = [step, _nibbles(offset + 8) if kind == GGMLQuantizationType.Q4_0 else offset.astype(np.int8)]
    return kind, np.concatenate([part.view(np.uint8) for part in parts], axis=-1).reshape(outputs, -1)


def _block_groups(leaf: Affine, path: str) -> np.ndarray:
    """Group of each block of inputs."""
    per_input = np.arange(leaf.shape[0]) // leaf.group if leaf.g_idx is None else np.asarray(leaf.g_idx)
    per_block = per_input.reshape(-1, BLOCK)
    if (per_block != per_block[:, :1]).any():
        raise ValueError(
            f"{path}: GGUF has one scale for {BLOCK} consecutive inputs, and this leaf's groups of {leaf.group} "
            + ("cut through them" if leaf.g_idx is None else "follow the activation order; use static groups")
        )
    return per_block[:, 0]


def _half(values: np.ndarray, path: str, name: str) -> np.ndarray:
    """``[out, blocks]`` as float16 ``[out, blocks, 1]``."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{path}: a {name} of {np.abs(values).max():g} is beyond float16, which GGUF's blocks hold")
    return half[..., None]


def _nibbles(values: np.ndarray) -> np.ndarray:
    """4-bit values ``[..., 32]`` as bytes ``[..., 16]``: the first half low, the second half high."""
    values = values.astype(np.uint8)
    return values[..., : BLOCK // 2] | values[..., BLOCK // 2 :] << 4
