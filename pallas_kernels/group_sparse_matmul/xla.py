"""The product in plain JAX: what runs where no kernel does, and what kernels are compared with."""

import jax
import jax.numpy as jnp

from pallas_kernels.group_sparse_matmul.layout import GroupSparseLayout, StoredGroups


def zeros_of(stored: StoredGroups, layout: GroupSparseLayout) -> jax.Array:
    """Zeros whatever their kind, float32 of the shape of ``scale``."""
    if layout.zero_kind == "real":
        return stored.zero.astype(jnp.float32)
    tiles = stored.zero.reshape(*stored.zero.shape[:-1], -1, 1, layout.bits)
    shift = (jnp.arange(layout.fields, dtype=jnp.uint32) * jnp.uint32(layout.bits)).reshape(
        *[1] * (tiles.ndim - 2), -1, 1
    )
    codes = (tiles >> shift) & jnp.uint32(2**layout.bits - 1)
    flat = codes.reshape(*stored.zero.shape[:-1], -1)
    return flat[..., : layout.stored[-1]].astype(jnp.float32)


def group_sparse_matmul_xla(x: jax.Array, stored: StoredGroups, layout: GroupSparseLayout) -> jax.Array:
    """``x @ w`` for ``x [m, rows]`` without building ``w``: absent groups are never touched."""
    words = stored.codes.reshape(1, layout.words, -1)
    shift = (jnp.arange(layout.fields, dtype=jnp.uint32) * jnp.uint32(layout.bits)).reshape(-1, 1, 1)
    codes = ((words >> shift) & jnp.uint32(2**layout.bits - 1)).reshape(layout.group, -1).astype(jnp.float32)
    level = (codes - zeros_of(stored, layout).reshape(1, -1)) * stored.scale.astype(jnp.float32).reshape(1, -1)
    groups = x.astype(jnp.float32).reshape(x.shape[0], -1, layout.group)
    met = jnp.take(groups, stored.index.astype(jnp.int32).reshape(-1), axis=1)  # [m, n, group]
    parts = jnp.einsum("mng,gn->mn", met, level, precision="highest")
    if stored.row_ptr is None:
        y = jnp.sum(parts.reshape(x.shape[0], layout.kept, layout.cols), axis=1)
    else:
        place = jnp.arange(layout.kept, dtype=jnp.int32)
        output = jnp.searchsorted(stored.row_ptr, place, side="right").astype(jnp.int32) - 1
        y = jax.ops.segment_sum(parts.T, output, layout.cols, indices_are_sorted=True).T
    return y.astype(x.dtype)
