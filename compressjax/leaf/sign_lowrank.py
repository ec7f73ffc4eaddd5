"""A stack of sign and low-rank blocks, of which a run-time number counts: ``w = sum_i S_i * (u_i v_i) / s``."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.leaf.pools import register_pool, split_pools
from compressjax.leaf.registration import leaf
from compressjax.numerics import bitpack
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take
from compressjax.ops.on_gpu import KERNEL_ACTIVATIONS, kernel_or_formula


@leaf(static=("shape", "tile"))
class SignLowRank:
    """Residual blocks of a weight of logical shape ``[in, out]``, stacked layers leading.

    ``w[i, o] = sum_{j < loaded} S[slot_j][i, o] (u[slot_j] v[slot_j])[i, o] / in_scale[i]`` with ``S`` in {-1, +1}.

    Blocks stand in ``P`` places. Either every layer has places of its own (arrays lead with ``lead``, as any leaf), or
    all layers share one pool (``signs``, ``u`` and ``v`` have no leading axes), so that layers may hold different
    numbers of blocks and the arrays still hold no block more than there are; `leaf.pools.split_pools` is how a scan
    over layers takes such a leaf. ``loaded`` is data: growing and shrinking inside the places allocated compiles
    nothing. Places that are allocated count as stored bits, loaded or not: a model is smaller only once its arrays are.

    Attributes:
      signs: uint32 ``[*lead, P, words, out]``, 32 signs a word, bit 1 for plus, see ``numerics.bitpack``.
      u: float ``[*lead, P, in, k]``.
      v: float ``[*lead, P, k, out]``.
      slots: int32 ``[*lead, n]``, the place of the layer's ``j``-th block.
      loaded: int32 ``[*lead]``, blocks that count, at most ``n``; later ones are never read.
      in_scale: float ``[*lead, in]`` that inputs are divided by, or None.
      shape: ``(in, out)``.
      tile: rows packed together.
    """

    signs: jax.Array
    u: jax.Array
    v: jax.Array
    slots: jax.Array
    loaded: jax.Array
    in_scale: jax.Array | None = None
    shape: tuple[int, int]
    tile: int


def sign_lowrank(
    plus: jax.Array, u: jax.Array, v: jax.Array, in_scale: jax.Array | None = None, *, tile: int | None = None
) -> SignLowRank:
    """Builds a :class:`SignLowRank` leaf with every block loaded.

    Args:
      plus: bool ``[*lead, n, in, out]``, True where the sign is plus.
      u: float ``[*lead, n, in, k]``, stored in its dtype.
      v: float ``[*lead, n, k, out]``.
      in_scale: float ``[*lead, in]``, or None.
      tile: rows packed together; the largest that adds no padding when None.

    Raises:
      ValueError: when shapes do not fit each other.
    """
    *lead, levels, rows, cols = plus.shape
    rank = u.shape[-1]
    if u.shape != (*lead, levels, rows, rank) or v.shape != (*lead, levels, rank, cols):
        raise ValueError(f"signs {plus.shape} want u [..., {rows}, k] and v [..., k, {cols}], got {u.shape}, {v.shape}")
    if in_scale is not None and in_scale.shape != (*lead, rows):
        raise ValueError(f"in_scale must have shape {(*lead, rows)}, got {in_scale.shape}")
    tile = bitpack.pack_tile(rows) if tile is None else tile
    return SignLowRank(
        signs=bitpack.pack(plus, 1, tile),
        u=u,
        v=v,
        slots=jnp.broadcast_to(jnp.arange(levels, dtype=jnp.int32), (*lead, levels)),
        loaded=jnp.full(lead, levels, jnp.int32),
        in_scale=in_scale,
        shape=(rows, cols),
        tile=tile,
    )


def signed(plus: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    """One block ``S * (u v)`` in float32 from bool signs and stored factors."""
    magnitude = jnp.matmul(u.astype(jnp.float32), v.astype(jnp.float32), precision="highest")
    return jnp.where(plus, magnitude, -magnitude)


def unpack_block(w: SignLowRank, at: jax.Array | int) -> jax.Array:
    """The block in place ``at`` of an unstacked leaf or a pool, float32 ``[in, out]``, input scale not applied."""
    plus = bitpack.unpack(w.signs[at], 1, w.tile, w.shape[0])
    return signed(plus == 1, w.u[at], w.v[at])


def with_loaded(w: SignLowRank, loaded: Any) -> SignLowRank:
    """The same arrays with other numbers of blocks counting; the structure stays, so nothing is compiled again.

    Args:
      w: the leaf.
      loaded: integers ``[*lead]`` or one for all, in ``0..n``; larger values are cut to ``n``.
    """
    wanted = jnp.clip(jnp.asarray(loaded, jnp.int32), 0, w.slots.shape[-1])
    return dataclasses.replace(w, loaded=jnp.broadcast_to(wanted, w.loaded.shape))


def _shared(w: SignLowRank) -> bool:
    return w.signs.ndim - 3 < w.loaded.ndim


register_pool(SignLowRank, ("signs", "u", "v"), _shared)


def _one(w: SignLowRank):
    """Dense weight of an unstacked leaf; the loop ends at ``loaded``, so later blocks are never read."""
    start = jnp.zeros(w.shape, jnp.float32)
    total = jax.lax.fori_loop(0, w.loaded, lambda j, total: total + unpack_block(w, w.slots[j]), start)
    return total if w.in_scale is None else total / w.in_scale.astype(jnp.float32)[:, None]


# Under jit so that a model traces the unpacking once per kind and shape of weight, not at every product.
@dense.register(SignLowRank)
@jax.jit
def _dense(w: SignLowRank):
    lead = w.loaded.shape
    if not lead:
        return _one(w)
    layers, join = split_pools(w)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), layers)
    return jax.lax.map(lambda layer: _one(join(layer)), flat).reshape(*lead, *w.shape)


@logical_shape.register(SignLowRank)
def _shape(w: SignLowRank):
    return (*w.loaded.shape, *w.shape)


@matmul.register(SignLowRank)
def _matmul(x, w: SignLowRank):
    return kernel_or_formula(_matmul_kernel, _matmul_formula, _kernel_refusal(x, w), x, w)


def _matmul_formula(x, w: SignLowRank):
    return x @ dense(w).astype(x.dtype)


def _matmul_kernel(x, w: SignLowRank):
    from pallas_kernels.sign_lowrank_matmul import sign_lowrank_matmul

    if w.in_scale is not None:
        x = (x.astype(jnp.float32) / along_last(w.in_scale.astype(jnp.float32), x.ndim)).astype(x.dtype)
    return sign_lowrank_matmul(x, *kernel_operands(w), implementation="triton")


def kernel_operands(w: SignLowRank):
    """Blocks and layout of an unstacked leaf as ``pallas_kernels.sign_lowrank_matmul`` takes them."""
    from pallas_kernels.sign_lowrank_matmul import SignBlocks, SignLayout

    layout = SignLayout(rank=w.u.shape[-1], tile=w.tile, rows=w.shape[0], cols=w.shape[1])
    return SignBlocks(w.signs, w.u, w.v, w.slots, w.loaded), layout


def along_last(vector: jax.Array, rank: int) -> jax.Array:
    """``[d] -> [1, ..., 1, d]`` of the given rank, so that nothing leans on rank promotion."""
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def _kernel_refusal(x, w):
    """Why the GPU kernel does not take this product, or None."""
    if w.loaded.ndim > 0:
        return "the weight is a stack of layers"
    if w.tile not in bitpack.TILES:
        return f"tile {w.tile} is none of {bitpack.TILES}"
    if w.u.shape[-1] > 128 or w.u.dtype != w.v.dtype:
        return "the rank exceeds 128 or the factors differ in dtype"
    if x.dtype.name not in KERNEL_ACTIVATIONS:
        return f"activations are {x.dtype.name}"
    return None


@matmul_t.register(SignLowRank)
def _matmul_t(x, w: SignLowRank):
    return jnp.einsum("...i,oi->...o", x, dense(w).astype(x.dtype))


@take.register(SignLowRank)
def _take(w: SignLowRank, ids):
    flat = ids.reshape(-1)

    def add(j, total):
        at = w.slots[j]
        plus = bitpack.unpack_rows(w.signs[at], 1, w.tile, flat)
        return total + signed(plus == 1, jnp.take(w.u[at], flat, axis=0), w.v[at])

    rows = jax.lax.fori_loop(0, w.loaded, add, jnp.zeros((flat.shape[0], w.shape[1]), jnp.float32))
    if w.in_scale is not None:
        rows = rows / jnp.take(w.in_scale.astype(jnp.float32), flat)[:, None]
    return rows.reshape(*ids.shape, w.shape[1])
