"""The public flush: checks, and choice of implementation."""

import jax

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.kv_append.config import choose_config
from pallas_kernels.kv_append.layout import AppendLayout, check_arrays
from pallas_kernels.kv_append.triton import kv_append_triton
from pallas_kernels.kv_append.xla import kv_append_xla
from pallas_kernels.kv_attention.layout import Codes


def kv_append(
    held: Codes,
    x: jax.Array,
    at: jax.Array,
    layout: AppendLayout,
    *,
    keep: jax.Array | None = None,
    implementation: str | None = None,
    config: BlockConfig | None = None,
) -> Codes:
    """Rounds a block of keys or values group by group, packs it and puts it into a cache.

    Args:
      held: a cache of C blocks, ``[C, B, K, ...]``. Where a program may reuse its memory (``donate_argnums``) nothing
        of it is copied.
      x: ``[B, K, n, width]`` in bfloat16, float16 or float32.
      at: int32 scalar, number of the block; the nearest one there is, as for ``lax.dynamic_update_slice``.
      layout: how the block is rounded and packed.
      keep: uint8 ``[B, n]``, 0 for tokens that widen no range; None for none.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere. All give the same bits, but for division, which XLA and Triton round alike on
        one device and a GPU rounds otherwise than a CPU, by 2 units in the last place.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      The cache with the block in its place.

    Raises:
      TypeError, ValueError: for arrays that do not fit, or an implementation that cannot run.
    """
    check_arrays(held, x, at, keep, layout)
    name = choose("kv_append", implementation, {"triton": needs_gpu(), "xla": None, "interpret": None})
    if name == "xla" or x.size == 0:
        return kv_append_xla(held, x, at, keep, layout)
    codes, scale, low, x, at, keep = varying_alike(*held, x, at, keep)  # pyright: ignore[reportAssignmentType]
    chosen = choose_config(x.shape, x.dtype, layout, config)
    known = Codes(codes, scale, low)  # pyright: ignore[reportArgumentType]
    return kv_append_triton(known, x, at, keep, layout, chosen, interpret=name == "interpret")
