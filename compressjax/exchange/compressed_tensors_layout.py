"""Tensors of a linear in the ``pack-quantized`` format of compressed-tensors, as llm-compressor and vLLM use it.

With b bits, C inputs, R outputs and G = C / group groups:

* ``weight_packed`` int32 ``[R, ceil(C*b/32)]``: codes packed along the inputs. The library's codes are signed, and it
  adds ``2**(b-1)`` before packing, so the stored bits are our unsigned codes;
* ``weight_scale`` float ``[R, G]``, or ``[R, 1]`` per output;
* ``weight_zero_point`` int32 ``[ceil(R*b/32), G]``: zeros packed along the outputs with the same offset; absent when
  symmetric;
* ``weight_shape`` int64 ``[2]``: ``(R, C)``;
* ``weight_g_idx`` int32 ``[C]``: group of each input, when groups are scattered. Release 0.20 dropped it, so it is
  read but not written.

The library takes the group to be C / G, so all groups have the same number of inputs.

Releases before codes could straddle words packed ``32 // b`` codes to a word; at 2, 4 and 8 bits that is the same.
"""

import numpy as np

from compressjax.exchange.bit_stream import pack_stream, unpack_stream
from compressjax.exchange.scheme import PlainAffine, Scheme

BITS = tuple(range(1, 9))


def names(scheme: Scheme) -> tuple[str, ...]:
    """Last parts of the names of a linear's tensors."""
    return (
        "weight_packed",
        "weight_scale",
        *(() if scheme.symmetric else ("weight_zero_point",)),
        *(("weight_g_idx",) if scheme.act_order else ()),
        "weight_shape",
    )


def pack_compressed(plain: PlainAffine) -> dict[str, np.ndarray]:
    """Tensors of one linear, by the last part of their name.

    Raises:
      ValueError: groups of unequal size or scattered, which the format cannot say.
    """
    scheme, (rows, cols) = plain.scheme, plain.codes.shape
    check_groups(rows, scheme.group)
    if scheme.act_order:
        raise ValueError("compressed-tensors has no group index for scattered groups")
    tensors = {
        "weight_packed": pack_stream(plain.codes.T, scheme.bits),
        "weight_scale": np.ascontiguousarray(plain.scale.T),
        "weight_shape": np.array([cols, rows], np.int64),
    }
    if not scheme.symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(pack_stream(plain.zero, scheme.bits).T)
    return tensors


def unpack_compressed(tensors: dict[str, np.ndarray], scheme: Scheme) -> PlainAffine:
    """Inverse of :func:`pack_compressed`.

    Args:
      tensors: by the last part of their name.
      scheme: as the checkpoint states it.

    Raises:
      ValueError: shapes that do not fit each other, groups of unequal size.
    """
    bits = scheme.bits
    shape = tuple(int(n) for n in tensors["weight_shape"].ravel())
    packed, scale = tensors["weight_packed"], tensors["weight_scale"]
    if len(shape) != 2 or packed.shape[0] != shape[0]:
        raise ValueError(f"weight_shape {shape} does not go with weight_packed of shape {packed.shape}")
    cols, rows = shape
    check_groups(rows, scheme.group)
    groups = 1 if scheme.group == -1 else max(rows // scheme.group, 1)
    if scheme.group == -1 and scale.size == 1:
        scale = np.broadcast_to(scale.reshape(1, 1), (cols, 1))
    if scale.shape != (cols, groups):
        raise ValueError(f"weight_scale should have shape {(cols, groups)} at group {scheme.group}, got {scale.shape}")
    if scheme.symmetric:
        zero = np.full((groups, cols), 2 ** (bits - 1), np.uint8)
    else:
        zero = _unpack_rows(tensors["weight_zero_point"].T, bits, cols)
        if zero.shape != (groups, cols):
            raise ValueError(f"weight_zero_point should hold {groups} zeros per output, got {zero.shape[0]}")
    g_idx = np.arange(rows) * groups // rows
    if scheme.act_order and groups > 1:
        g_idx = tensors["weight_g_idx"]
        if g_idx.shape != (rows,):
            raise ValueError(f"weight_g_idx should have shape {(rows,)}, got {g_idx.shape}")
        _check_balance(g_idx, groups)
    return PlainAffine(
        codes=np.ascontiguousarray(_unpack_rows(packed, bits, rows).T),
        scale=np.ascontiguousarray(scale.T),
        zero=zero,
        g_idx=g_idx.astype(np.int32),
        scheme=Scheme(
            bits=bits,
            group=-1 if groups == 1 else scheme.group,
            symmetric=scheme.symmetric,
            act_order=scheme.act_order and groups > 1,
        ),
    )


def check_groups(rows: int, group: int) -> None:
    """Refuses a short last group.

    Raises:
      ValueError: ``group`` does not divide ``rows``.
    """
    if 0 < group < rows and rows % group:
        raise ValueError(
            f"compressed-tensors needs groups of equal size, but {group} does not divide {rows} inputs; use a group "
            "that divides them, or the GPTQ format"
        )


def _check_balance(g_idx: np.ndarray, groups: int) -> None:
    if g_idx.min() < 0 or g_idx.max() >= groups:
        raise ValueError(f"weight_g_idx should hold numbers from 0 to {groups - 1}, got {g_idx.min()} to {g_idx.max()}")
    counts = np.bincount(g_idx, minlength=groups)
    if (counts != len(g_idx) // groups).any():
        raise ValueError(
            f"compressed-tensors needs {len(g_idx) // groups} inputs in each of {groups} groups, but weight_g_idx "
            f"gives between {counts.min()} and {counts.max()}"
        )


def _unpack_rows(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    per_word = 32 // bits
    if words.shape[-1] == -(-count * bits // 32) or words.shape[-1] != -(-count // per_word):
        return unpack_stream(words, bits, count)
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    fields = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return fields.astype(np.uint8).reshape(*words.shape[:-1], -1)[..., :count]
