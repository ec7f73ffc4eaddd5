"""Attention of one new token to blocks of latents by the GPU kernel, which reads a latent once as key and as value.

Letters as in `kvcache.partial`; C blocks of n tokens, r width of a latent, which is the first part of its key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from compressjax.kvcache.packed import Axis, Packed, tile_of
from compressjax.kvcache.packed_attention import span
from compressjax.kvcache.partial import Partial
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS

_MOST_WIDTH = 576
_MOST_FLOAT32 = 256


class Latents(NamedTuple):
    """Keys of blocks whose values are part of them.

    Attributes:
      held: ``[C, B, K, n, d]`` as floats, or codes and scales; without C of a single block.
      axis, bits: how they were rounded; None for floats.
    """

    held: jax.Array | Packed
    axis: Axis | None = None
    bits: int | None = None


def latent_refusal(latents: Latents | str, q: jax.Array) -> str | None:
    """Why the GPU kernel does not take this attention, or None.

    Args:
      latents: the blocks, or why they have no such form.
      q: ``[B, K, G, T, d]``.
    """
    if isinstance(latents, str):
        return latents
    if q.shape[3] != 1:
        return f"there are {q.shape[3]} new tokens"
    if q.shape[1] != 1:
        return f"a token has {q.shape[1]} latents"
    if q.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {q.dtype.name}"
    most = _MOST_FLOAT32 if q.dtype == jnp.float32 else _MOST_WIDTH
    return f"latents have {q.shape[4]} channels in {q.dtype.name}" if q.shape[4] > most else None


def attend_latents(q: jax.Array, latents: Latents, rank: int, seen: jax.Array) -> Partial:
    """Attention to the tokens of all blocks that are seen.

    Args:
      q: ``[B, 1, H, 1, d]``, already scaled.
      latents: blocks, which `latent_refusal` does not refuse.
      rank: r.
      seen: bool ``[C, B, 1, n]``, or ``[B, 1, n]`` of a single block.
    """
    from pallas_kernels.kv_attention import Codes, Side
    from pallas_kernels.mla_attention import MLALayout, mla_attention

    held = latents.held
    if seen.ndim == 3:
        held, seen = jax.tree.map(lambda a: a[None], held), seen[None]
    held = jax.tree.map(lambda a: a[:, :, 0], held)
    tokens, width, side, rows = seen.shape[-1], q.shape[-1], None, held
    if isinstance(held, Packed):
        assert latents.axis is not None and latents.bits is not None  # codes were rounded somehow
        scales = held.scale.shape
        group = tokens // scales[-2] if latents.axis == "channel" else width // scales[-1]
        side = Side(width=width, bits=latents.bits, group=group, axis=latents.axis, sym=held.low is None)
        rows = Codes(*held)
    tile = 32 if side is None else tile_of(tokens)
    found = mla_attention(
        q[:, 0, :, 0],
        rows,
        *span(seen),
        MLALayout(rank=rank, rope=width - rank, tokens=tokens, side=side, tile=tile),
        seen=seen[:, :, 0].astype(jnp.uint8),
        implementation="triton",
    )
    return Partial(found.acc[:, None, :, None], found.m[:, None, :, None], found.l[:, None, :, None])
