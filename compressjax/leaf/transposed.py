"""A weight compressed along its other axis, as an embedding is: groups run along the width, not the vocabulary."""

from typing import Any

import jax.numpy as jnp

from compressjax.leaf.affine import Affine, unpack_zeros
from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class Transposed:
    """The transpose of ``inner``: an embedding ``[vocab, width]`` kept as a leaf of shape ``[width, vocab]``.

    The tied output head then reads ``inner`` the straight way, and a row look-up reads columns of ``inner``.

    Attributes:
      inner: a leaf of logical shape ``[width, vocab]``.
    """

    inner: Any


@dense.register(Transposed)
def _dense(w: Transposed):
    return jnp.swapaxes(dense(w.inner), -1, -2)


@logical_shape.register(Transposed)
def _shape(w: Transposed):
    *lead, rows, cols = logical_shape(w.inner)
    return (*lead, cols, rows)


@matmul.register(Transposed)
def _matmul(x, w: Transposed):
    return matmul_t(x, w.inner)


@matmul_t.register(Transposed)
def _matmul_t(x, w: Transposed):
    return matmul(x, w.inner)


@take.register(Transposed)
def _take(w: Transposed, ids):
    if not isinstance(w.inner, Affine):
        return jnp.take(dense(w.inner), ids, axis=-1)
    inner = w.inner
    flat = ids.reshape(-1)
    columns = Affine(
        codes=jnp.take(inner.codes, flat, axis=-1),
        scale=jnp.take(inner.scale, flat, axis=-1),
        zero=None if inner.zero is None else jnp.take(unpack_zeros(inner), flat, axis=-1),
        g_idx=inner.g_idx,
        bits=inner.bits,
        group=inner.group,
        shape=(inner.shape[0], flat.shape[0]),
        zero_kind="none" if inner.zero is None else "real",
        tile=inner.tile,
    )
    return jnp.swapaxes(dense(columns), 0, 1).reshape(*ids.shape, inner.shape[0])
