"""The embedding, and the head where there is one, in fewer bits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.leaf import Transposed
from compressjax.quantization.rtn import RTN, rtn
from compressjax.select import replace

EMBEDDING_BITS = (*range(2, 9), 16, 32)
"""Bits that :func:`round_outside` takes."""


def check_embedding_bits(bits: int) -> None:
    """Raises ValueError for bits that :func:`round_outside` does not take."""
    if bits not in EMBEDDING_BITS:
        raise ValueError(f"embedding-bits must be 2 to 8, 16 or 32, got {bits}")


def round_outside(params: Any, bits: int) -> Any:
    """A decoder's parameters with embedding and head rounded; its blocks, if they are there, stay.

    Up to 8 bits they are rounded to nearest on symmetric grids of 64 weights, which run along the width as the head
    reads them; 16 is float16 and 32 float32.

    Args:
      params: tree with ``embed/embedding [V, D]`` and, unless tied, ``head/kernel [D, V]``, dense.
      bits: one of `EMBEDDING_BITS`.

    Raises:
      ValueError: other bits, or entries that float16 does not hold.
    """
    check_embedding_bits(bits)
    outside = {"embed/embedding": jnp.asarray(params["embed"]["embedding"])}
    if "head" in params:
        outside["head/kernel"] = jnp.asarray(params["head"]["kernel"])
    if bits > 8:
        dtype = jnp.float16 if bits == 16 else jnp.float32
        for path, w in outside.items():
            if float(jnp.max(jnp.abs(w))) > float(jnp.finfo(dtype).max):
                raise ValueError(f"{path} has entries beyond {jnp.finfo(dtype).max} of float16: take embedding-bits 32")
        return replace(params, {path: w.astype(dtype) for path, w in outside.items()})
    rounded = functools.partial(jax.jit(rtn, static_argnames="cfg"), cfg=RTN(bits=bits, group=64, sym=True))
    new = {
        path: Transposed(inner=rounded(w.astype(jnp.float32).T)) if path.startswith("embed") else rounded(w)
        for path, w in outside.items()
    }
    return replace(params, new)
