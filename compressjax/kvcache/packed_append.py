"""Rounding a full ring into its place among stacked blocks by the GPU kernel, which copies nothing of the others.

Letters as in `kvcache.packed`; C blocks.
"""

import jax
import jax.numpy as jnp

from compressjax.kvcache.packed import Axis, Packed, tile_of
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS

_MOST_GROUP = 1024


def append_refusal(x: jax.Array, axis: Axis, group: int) -> str | None:
    """Why the GPU kernel does not round keys or values ``x [B, K, S, d]`` in groups along an axis, or None."""
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"the ring is {x.dtype.name}"
    if group > _MOST_GROUP:
        return f"groups have {group} values"
    run = tile_of(x.shape[2]) // 32  # tokens of a field of one bit, which groups must not cut
    cut = axis == "channel" and group % run and run % group
    return f"groups of {group} tokens cut runs of {run}" if cut else None


def append_groups(
    held: Packed, x: jax.Array, keep: jax.Array, at: jax.Array, axis: Axis, *, bits: int, group: int, sym: bool = False
) -> Packed:
    """Stacked blocks ``[C, B, K, ...]`` with ``x`` rounded as the one numbered ``at``.

    Args:
      held: the blocks.
      x: ``[B, K, S, d]``, which `append_refusal` does not refuse.
      keep: bool ``[B, S]``, as for `pack_groups`.
      at: int32 scalar.
      axis, bits, group, sym: as for `pack_groups`.
    """
    from pallas_kernels.kv_append import AppendLayout, kv_append
    from pallas_kernels.kv_attention import Codes, Side

    side = Side(width=x.shape[3], bits=bits, group=group, axis=axis, sym=sym)
    layout = AppendLayout(tokens=x.shape[2], tile=tile_of(x.shape[2]), side=side)
    return Packed(*kv_append(Codes(*held), x, at, layout, keep=keep.astype(jnp.uint8), implementation="triton"))
