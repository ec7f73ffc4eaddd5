"""The public pair: checks, and choice of implementation."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backends.choose import choose, needs_gpu
from pallas_kernels.backends.pallas_triton import varying_alike
from pallas_kernels.backends.random_bits import key_words
from pallas_kernels.block_config import BlockConfig
from pallas_kernels.quantize_pack.config import choose_config
from pallas_kernels.quantize_pack.layout import FLOATS, Packed, PackLayout, check_packed, check_values
from pallas_kernels.quantize_pack.triton import quantize_pack_triton, unpack_dequantize_triton
from pallas_kernels.quantize_pack.xla import quantize_pack_xla, unpack_dequantize_xla

_RUNS = ("triton", "xla", "interpret")


def quantize_pack(
    x: jax.Array,
    layout: PackLayout,
    *,
    key: jax.Array | None = None,
    implementation: str | None = None,
    config: BlockConfig | None = None,
) -> Packed:
    """Rounds the blocks of an array to few bits and packs them.

    Args:
      x: bfloat16, float16 or float32; any shape for a flat layout, ``[..., rows, cols]`` of whole tiles otherwise.
      layout: how values are grouped, rounded and packed.
      key: a JAX key, to round at random to one of the two neighbours with the value as the mean, from 16 random bits;
        None to round to the nearest.
      implementation: "triton", "xla", or "interpret" (the Triton kernel run by the host, for tests); None takes the
        kernel on a GPU and XLA elsewhere. All draw the same random numbers.
      config: sizes; those measured on this machine or chosen by rule when None.

    Returns:
      Words and scales. A block with a value that is not finite has no meaning.

    Raises:
      TypeError, ValueError: for values that do not fit, or an implementation that cannot run.
    """
    check_values(x, layout)
    name = choose("quantize_pack", implementation, dict(zip(_RUNS, (needs_gpu(), None, None), strict=True)))
    words = None if key is None else key_words("quantize_pack", key)
    if name == "xla" or x.size == 0:
        return quantize_pack_xla(x, words, layout)
    operands = varying_alike(x, words)
    assert operands[0] is not None  # an array was given
    chosen = choose_config(x.shape, x.dtype, layout, config)
    return quantize_pack_triton(operands[0], operands[1], layout, chosen, interpret=name == "interpret")


def unpack_dequantize(
    packed: Packed,
    shape: tuple[int, ...],
    layout: PackLayout,
    *,
    dtype: Any = jnp.float32,
    implementation: str | None = None,
    config: BlockConfig | None = None,
) -> jax.Array:
    """The array that :func:`quantize_pack` packed, up to its rounding.

    Args:
      packed: words and scales.
      shape: of the array.
      layout: it was packed with.
      dtype: of the result, bfloat16, float16 or float32; values are computed in float32.
      implementation, config: as for :func:`quantize_pack`.

    Raises:
      TypeError, ValueError: for arrays that do not fit, or an implementation that cannot run.
    """
    if jnp.dtype(dtype) not in map(jnp.dtype, FLOATS):
        raise TypeError(f"quantize_pack: dtype must be bfloat16, float16 or float32, got {jnp.dtype(dtype)}")
    check_packed(packed, shape, layout)
    name = choose("quantize_pack", implementation, dict(zip(_RUNS, (needs_gpu(), None, None), strict=True)))
    if name == "xla" or packed.words.size == 0:
        return unpack_dequantize_xla(packed, shape, dtype, layout)
    alike = Packed(*varying_alike(*packed))  # pyright: ignore[reportArgumentType]
    chosen = choose_config(shape, jnp.dtype(dtype), layout, config)
    return unpack_dequantize_triton(alike, shape, dtype, layout, chosen, interpret=name == "interpret")
