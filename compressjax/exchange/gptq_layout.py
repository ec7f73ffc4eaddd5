"""Tensors of a linear in the GPTQ interchange layout, as AutoGPTQ, GPTQModel and vLLM read them.

With b bits, C inputs, R outputs and G = ceil(C / group) groups:

* ``qweight`` int32 ``[C*b/32, R]``: codes packed along the inputs;
* ``qzeros`` int32 ``[G, R*b/32]``: zeros packed along the outputs; version 1 stores ``zero - 1``, version 2 ``zero``;
* ``scales`` float16 ``[G, R]``;
* ``g_idx`` int32 ``[C]``: group of each input.

The weight is ``w[r, c] = scales[g_idx[c], r] * (code[c, r] - zero[g_idx[c], r])``.

Version 1 takes the 1 away from whole words, so a zero of 0 borrows from its neighbour in the word; adding the 1 back to
whole words undoes it, which is what GPTQModel does on both sides. At 3 bits, where zeros straddle words, it works on
single zeros modulo 8. Readers that add 1 to single zeros (some kernels without reducing modulo ``2**b``) agree
with this whenever no zero is 0.
"""

import numpy as np

from compressjax.exchange.bit_stream import pack_stream, unpack_stream
from compressjax.exchange.scheme import PlainAffine, Scheme

BITS = (2, 3, 4, 8)
NAMES = ("qweight", "qzeros", "scales", "g_idx")


def pack_gptq(plain: PlainAffine, *, version: int) -> dict[str, np.ndarray]:
    """Tensors of one linear, by the last part of their name.

    Args:
      plain: codes ``[C, R]`` with C and R multiples of 32.
      version: 1 or 2, how zeros are stored.

    Raises:
      ValueError: bits other than 2, 3, 4, 8, or scales that float16 cannot hold.
    """
    bits = plain.scheme.bits
    _check(bits, version)
    return {
        "qweight": np.ascontiguousarray(pack_stream(plain.codes.T, bits).T),
        "qzeros": zeros_to_version(pack_stream(plain.zero, bits), bits, version),
        "scales": half_scales(plain.scale),
        "g_idx": plain.g_idx.astype(np.int32),
    }


def unpack_gptq(tensors: dict[str, np.ndarray], scheme: Scheme, *, version: int) -> PlainAffine:
    """Inverse of :func:`pack_gptq`.

    Args:
      tensors: by the last part of their name; without ``g_idx``, groups are contiguous.
      scheme: bits and group as the checkpoint states them. Whether groups are scattered and zeros all in the middle
        is read off the tensors.
      version: 1 or 2, how zeros are stored.

    Raises:
      ValueError: bits other than 2, 3, 4, 8; shapes that do not fit each other; a group index out of range.
    """
    bits = scheme.bits
    _check(bits, version)
    rows, cols = tensors["qweight"].shape[0] * 32 // bits, tensors["qweight"].shape[1]
    size = rows if scheme.group == -1 else scheme.group
    groups = -(-rows // size)
    scale = tensors["scales"]
    if scale.shape != (groups, cols):
        raise ValueError(f"scales should have shape {(groups, cols)} at group {scheme.group}, got {scale.shape}")
    zero = unpack_stream(zeros_from_version(tensors["qzeros"], bits, version), bits, cols)
    if zero.shape != scale.shape:
        raise ValueError(f"qzeros should hold zeros of shape {scale.shape}, got {zero.shape}")
    in_order = np.arange(rows) // size
    g_idx = tensors["g_idx"] if "g_idx" in tensors else in_order  # noqa: SIM401 - keeps the type
    if g_idx.shape != (rows,) or g_idx.min() < 0 or g_idx.max() >= groups:
        raise ValueError(f"g_idx should hold {rows} numbers from 0 to {groups - 1}, got shape {g_idx.shape}")
    scattered = groups > 1 and (scheme.act_order or not np.array_equal(g_idx, in_order))
    middle = bool((zero == 2 ** (bits - 1)).all())
    return PlainAffine(
        codes=np.ascontiguousarray(unpack_stream(tensors["qweight"].T, bits, rows).T),
        scale=scale,
        zero=zero,
        g_idx=g_idx.astype(np.int32),
        scheme=Scheme(
            bits=bits,
            group=-1 if groups == 1 else scheme.group,
            symmetric=scheme.symmetric and middle,
            act_order=scattered,
        ),
    )


def zeros_to_version(words: np.ndarray, bits: int, version: int) -> np.ndarray:
    """Packed zeros as a checkpoint of this version stores them, int32 of the same shape."""
    return words if version == 2 else _shift_zeros(words, bits, -1)


def zeros_from_version(words: np.ndarray, bits: int, version: int) -> np.ndarray:
    """Inverse of :func:`zeros_to_version`."""
    return words if version == 2 else _shift_zeros(words, bits, 1)


def half_scales(scale: np.ndarray) -> np.ndarray:
    """Scales as float16; those of leaves made for export are float16 values already, so nothing is lost.

    Raises:
      ValueError: a scale overflows float16, or a nonzero one becomes zero.
    """
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    wide = scale.astype(np.float32)
    if not np.isfinite(half).all() or ((half == 0) & (wide != 0)).any():
        raise ValueError(
            f"scales from {np.abs(wide).min():.3g} to {np.abs(wide).max():.3g} do not fit float16; "
            "fit the grids with float16 scales"
        )
    return half


def _shift_zeros(words: np.ndarray, bits: int, step: int) -> np.ndarray:
    if bits == 3:
        count = words.shape[-1] * 32 // bits
        shifted = (unpack_stream(words, bits, count).astype(np.int32) + step) % 2**bits
        return pack_stream(shifted, bits)
    ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    return (unsigned + ones if step > 0 else unsigned - ones).view(np.int32)


def _check(bits: int, version: int) -> None:
    if bits not in BITS:
        raise ValueError(f"the GPTQ layout holds 2, 3, 4 or 8 bits, got {bits}")
    if version not in (1, 2):
        raise ValueError(f"version of the GPTQ layout must be 1 or 2, got {version}")
