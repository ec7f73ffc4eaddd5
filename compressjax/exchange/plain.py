"""Affine leaves to unpacked numpy arrays and back."""

import jax.numpy as jnp
import numpy as np

from compressjax.exchange.scheme import PlainAffine, leaf_scheme
from compressjax.leaf import Affine, pack_affine, unpack_codes, unpack_zeros


def unpack_leaf(leaf: Affine) -> PlainAffine:
    """Arrays of one affine leaf ``[in, out]`` with integer or no zeros.

    Raises:
      ValueError: for a stacked leaf.
    """
    if leaf.scale.ndim != 2:
        raise ValueError(f"one [in, out] weight at a time, got a leaf stacked as {leaf.scale.shape[:-2]}")
    rows = leaf.shape[0]
    g_idx = np.arange(rows) // leaf.group if leaf.g_idx is None else np.asarray(leaf.g_idx)
    return PlainAffine(
        codes=np.asarray(unpack_codes(leaf)),
        scale=np.asarray(leaf.scale),
        zero=np.asarray(unpack_zeros(leaf)).astype(np.uint8),
        g_idx=g_idx.astype(np.int32),
        scheme=leaf_scheme(leaf),
    )


def pack_leaf(plain: PlainAffine) -> Affine:
    """The leaf of unpacked arrays; zeros and group index are dropped when the scheme says they are implied."""
    scheme, rows = plain.scheme, plain.codes.shape[0]
    return pack_affine(
        jnp.asarray(plain.codes),
        jnp.asarray(plain.scale),
        None if scheme.symmetric else jnp.asarray(plain.zero),
        bits=scheme.bits,
        group=rows if scheme.group == -1 else scheme.group,
        zero_kind="none" if scheme.symmetric else "int",
        g_idx=jnp.asarray(plain.g_idx) if scheme.act_order else None,
    )
