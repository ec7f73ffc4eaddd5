"""Attention of one new token to blocks of packed keys and values by the GPU kernel, which never unpacks them to memory.

Entries held exactly stay outside of it: they join the scores beforehand and the sums afterwards.

Letters as in `kvcache.partial`; C blocks of n tokens, r rank of a low-rank part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.packed import Axis, Packed, tile_of
from compressjax.kvcache.packed_outliers import key_spots, misses, score_bias, sums_of_misses, value_spots
from compressjax.kvcache.partial import Partial
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS

_MOST_WIDTH = 256


class Rounded(NamedTuple):
    """Keys or values of blocks, ``low + scale * code (+ a b^T)``.

    Attributes:
      packed: codes and scales, ``[C, B, K, ...]``, or ``[B, K, ...]`` of a single block.
      axis, bits: how they were rounded.
      a, b: ``[(C,) B, K, n, r]`` and ``[(C,) B, K, width, r]``; None without a low-rank part.
      at, exact: places and values of entries held exactly, as `gear.GearBlock` has them; None without.
    """

    packed: Packed
    axis: Axis
    bits: int
    a: jax.Array | None = None
    b: jax.Array | None = None
    at: jax.Array | None = None
    exact: jax.Array | None = None


Sides = tuple[Rounded, Rounded]
"""Keys and values."""


def kernel_refusal(sides: Sides | str, q: jax.Array) -> str | None:
    """Why the GPU kernel does not take this attention, or None.

    Args:
      sides: keys and values, or why they have no such form.
      q: ``[B, K, G, T, d]``.
    """
    if isinstance(sides, str):
        return sides
    if q.shape[3] != 1:
        return f"there are {q.shape[3]} new tokens"
    if q.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {q.dtype.name}"
    widest = max(side.packed.codes.shape[-1] for side in sides)
    return f"heads have {widest} channels" if widest > _MOST_WIDTH else None


def attend_packed(q: jax.Array, sides: Sides, seen: jax.Array) -> Partial:
    """Attention to the tokens of all blocks that are seen.

    Args:
      q: ``[B, K, G, 1, d]``, already scaled.
      sides: keys and values, which `kernel_refusal` does not refuse.
      seen: bool ``[C, B, 1, n]``, or ``[B, 1, n]`` of a single block.
    """
    from pallas_kernels.kv_attention import Codes, Fit, KVLayout, Past, Side, kv_attention

    if seen.ndim == 3:
        sides, seen = _one_block(sides), seen[None]
    tokens = seen.shape[-1]
    held, fits, forms = [], [], []
    for packed, axis, bits, a, b, *_ in sides:
        width = packed.codes.shape[-1]
        group = tokens // packed.scale.shape[-2] if axis == "channel" else width // packed.scale.shape[-1]
        held.append(Codes(*packed))
        fits.append(None if a is None or b is None else Fit(a, b))
        forms.append(Side(width=width, bits=bits, group=group, axis=axis, sym=packed.low is None))
    key, value = forms
    layout = KVLayout(tokens=tokens, tile=tile_of(tokens), key=key, value=value)
    start, stop = span(seen)
    flags = seen[:, :, 0].astype(jnp.uint8)
    (k, v), bias, spots, missed = sides, None, None, None
    if k.at is not None and k.exact is not None:
        bias = score_bias(q, misses(*k[:3], tokens, key_spots(k.at, k.exact)), k.at, tokens)
    if v.at is not None and v.exact is not None:
        spots = value_spots(v.at, v.exact, value.width)
        missed = misses(*v[:3], tokens, spots)
    found = kv_attention(
        q[..., 0, :],
        Past(*held, *fits),
        start,
        stop,
        layout,
        seen=flags,
        bias=bias,
        keep_scores=spots is not None,
        implementation="triton",
    )
    acc = found.acc
    if spots is not None and missed is not None and found.scores is not None:
        among = seen[:, :, None]  # [C, B, 1, 1, n]; scores of the others were never written
        weights = jnp.exp(jnp.where(among, found.scores - found.m[None, ..., None], -jnp.inf))
        acc = acc + sums_of_misses(weights, missed, spots, value.width)
    return Partial(acc[..., None, :], found.m[..., None], found.l[..., None])


def span(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First token that each row sees and the one after the last, counted through the blocks; int32 ``[B]``, 0 for none.

    Args:
      seen: bool ``[C, B, 1, n]``.
    """
    flat = jnp.moveaxis(seen[:, :, 0], 0, 1).reshape(seen.shape[1], -1)
    start = jnp.argmax(flat, axis=1).astype(jnp.int32)
    stop = flat.shape[1] - jnp.argmax(flat[:, ::-1], axis=1).astype(jnp.int32)
    return start, jnp.where(jnp.any(flat, axis=1), stop, 0)


def _one_block(sides: Sides) -> Sides:
    def lead(side: Rounded) -> Rounded:
        arrays = jax.tree.map(lambda x: x[None], (side.packed, side.a, side.b, side.at, side.exact))
        return Rounded(arrays[0], side.axis, side.bits, *arrays[1:])

    return lead(sides[0]), lead(sides[1])
