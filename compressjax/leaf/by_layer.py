"""Stacked layers of which each is compressed in its own way: 2 bits here, 4 there, low rank or nothing elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from compressjax.leaf.pools import register_pool, split_pools
from compressjax.leaf.registration import leaf
from compressjax.ops import dense, logical_shape, matmul, matmul_t, take


@leaf()
class ByLayer:
    """One of several kinds of weight per layer; a layer stores its own kind only.

    Either all layers share one pool, in which a kind leads with the number of layers that are of that kind, or, inside
    ``vmap`` and plain scans, every layer has a pool of its own (``variants`` lead with ``lead`` first);
    `leaf.pools.split_pools` is how a scan over layers takes the shared form.

    Attributes:
      variants: arrays or leaves, one per kind, ``[n_kind, in, out]`` or ``[*lead, n_kind, in, out]``.
      kind: int32 ``[*lead]``, which of the variants a layer is.
      slot: int32 ``[*lead]``, its place among those of its kind.
    """

    variants: tuple[Any, ...]
    kind: jax.Array
    slot: jax.Array


def by_layer(layers: Sequence[Any]) -> Any:
    """Stacks the weights of several layers; layers of one structure are stored together.

    Args:
      layers: arrays or leaves of one logical shape ``[in, out]``.

    Returns:
      A plain stack where all are of one structure, else a :class:`ByLayer` leaf with a shared pool.

    Raises:
      ValueError: without layers, or with different logical shapes.
      TypeError: a layer that itself chooses by layer.
    """
    shapes = [logical_shape(w) for w in layers]
    if not shapes or any(shape != shapes[0] for shape in shapes) or len(shapes[0]) != 2:
        raise ValueError(f"layers must be at least one weight [in, out], all of one shape, got {shapes}")
    if any(isinstance(w, ByLayer) for w in layers):
        raise TypeError("a layer cannot itself be a choice by layer")
    members: dict[Any, list[int]] = {}
    for index, w in enumerate(layers):
        members.setdefault(_structure(w), []).append(index)
    variants = tuple(jax.tree.map(lambda *a: jnp.stack(a), *(layers[i] for i in own)) for own in members.values())
    if len(variants) == 1:
        return variants[0]
    kind, slot = [0] * len(layers), [0] * len(layers)
    for number, own in enumerate(members.values()):
        for place, index in enumerate(own):
            kind[index], slot[index] = number, place
    return ByLayer(variants=variants, kind=jnp.asarray(kind, jnp.int32), slot=jnp.asarray(slot, jnp.int32))


def _structure(w):
    arrays, structure = jax.tree.flatten(w)
    return structure, tuple((a.shape, jnp.dtype(a.dtype)) for a in arrays)


def _of_one_layer(w: ByLayer, run: Callable[..., jax.Array], *operands: Any) -> jax.Array:
    """``run(*operands, weight)`` with the weight of an unstacked leaf; only its own kind is computed."""

    def branch(variant):
        return lambda slot, *args: run(*args, jax.tree.map(lambda a: a[slot], variant))

    return jax.lax.switch(w.kind, [branch(v) for v in w.variants], w.slot, *operands)


@dense.register(ByLayer)
@jax.jit
def _dense(w: ByLayer):
    if not w.kind.ndim:
        return _of_one_layer(w, lambda weight: dense(weight).astype(jnp.float32))
    lead = w.kind.shape
    layers, join = split_pools(w)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), layers)
    out = jax.lax.map(lambda layer: _dense(join(layer)), flat)
    return out.reshape(*lead, *out.shape[1:])


@logical_shape.register(ByLayer)
def _shape(w: ByLayer):
    return (*w.kind.shape, *logical_shape(w.variants[0])[-2:])


@matmul.register(ByLayer)
def _matmul(x, w: ByLayer):
    return _of_one_layer(w, matmul, x)


@matmul_t.register(ByLayer)
def _matmul_t(x, w: ByLayer):
    return _of_one_layer(w, matmul_t, x)


@take.register(ByLayer)
def _take(w: ByLayer, ids):
    return _of_one_layer(w, lambda i, weight: take(weight, i).astype(jnp.float32), ids)


def _shared(w: ByLayer) -> bool:
    return w.kind.ndim > 0 and len(logical_shape(w.variants[0])) - 3 < w.kind.ndim


register_pool(ByLayer, ("variants",), _shared)
