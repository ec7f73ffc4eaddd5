"""A BitStack model in memory that grows and shrinks block by block, at exactly the bytes of its blocks.

All layers of a weight share one pool with as many places as they have blocks together, so nothing is padded. The
number of places is the *stack size*: a model of new stack sizes is compiled once, one of sizes seen before is not,
and within the places allocated blocks come and go without any compilation.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from compressjax.factorization.bitstack_budget import blocks_between, levels_for_budget
from compressjax.factorization.bitstack_store import BitStackStore, StackedWeight
from compressjax.leaf.sign_lowrank import SignLowRank
from compressjax.ops import nbits
from compressjax.select import replace, weights


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedStack:
    """A model of some size; its parameters run in our scanned models as any others.

    Attributes:
      params: the whole tree; stacked weights are pooled :class:`SignLowRank` leaves.
      levels: int32 ``[matrices]``, blocks loaded.
      places: int32 ``[matrices]``, blocks there is room for.
    """

    params: Any
    levels: np.ndarray
    places: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return nbits(self.params) // 8


class Resized(NamedTuple):
    """A resized model, and what moved: blocks read from the store, blocks dropped, bytes read."""

    model: LoadedStack
    read: int
    dropped: int
    bytes_read: int


def load_stack(store: BitStackStore, max_bytes: int, *, reserve: int | None = None) -> LoadedStack:
    """Reads the largest model of at most ``max_bytes``.

    Args:
      store: the decomposed model.
      max_bytes: everything the model holds counts: embedding, norms, scales, blocks, rows of places.
      reserve: allocate places for a model of this size at once, ``>= max_bytes``; they are held, and counted, from the
        start. None for no more than needed.

    Raises:
      ValueError: a budget below the smallest model, ``reserve`` below ``max_bytes``, or a damaged block.
    """
    levels, places = _sizes(store, max_bytes, reserve)
    tree, scales = store.read_rest()
    at = 0
    for weight in store.weights:
        mine = slice(at, at + weight.layers)
        at += weight.layers
        _put(tree, weight.path, _empty(store, weight, places[mine], scales.get(weight.path)))
    nothing = LoadedStack(tree, np.zeros_like(levels), places)
    return _move(store, nothing, levels, places).model


def resize_stack(store: BitStackStore, model: LoadedStack, max_bytes: int, *, reserve: int | None = None) -> Resized:
    """Grows or shrinks a model to the largest of at most ``max_bytes``, reading only the blocks it lacks.

    The model given is used up: pools that change are updated in place or freed as soon as their blocks have moved, so
    the peak is the larger model and one weight's pool.

    Args:
      store, max_bytes, reserve: as in :func:`load_stack`. With one ``reserve`` throughout, stack sizes stay and a
        compiled model is used again; without, memory follows ``max_bytes`` exactly.
      model: what :func:`load_stack` or this function returned for the same store.

    Raises:
      ValueError: as :func:`load_stack`. After a damaged block the model given is no longer whole: load it anew.
    """
    levels, places = _sizes(store, max_bytes, reserve)
    return _move(store, model, levels, places)


def _sizes(store: BitStackStore, max_bytes: int, reserve: int | None) -> tuple[np.ndarray, np.ndarray]:
    if reserve is not None and reserve < max_bytes:
        raise ValueError(f"reserve={reserve:,} must be at least max_bytes={max_bytes:,}")
    levels = levels_for_budget(store.table, max_bytes)
    return levels, levels if reserve is None else levels_for_budget(store.table, reserve)


def _put(tree: dict, path: str, value: Any) -> None:
    *keys, last = path.split("/")
    for key in keys:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _empty(store: BitStackStore, weight: StackedWeight, places: np.ndarray, scale: jax.Array | None) -> SignLowRank:
    entries = [store.files[0].entries[f"{weight.path}/0/{part}"] for part in ("signs", "u", "v")]
    # Made by numpy: jnp.zeros would be compiled anew for every size.
    signs, u, v = (jnp.asarray(np.zeros((int(places.sum()), *entry.shape), entry.dtype)) for entry in entries)
    return SignLowRank(
        signs=signs,
        u=u,
        v=v,
        slots=jnp.zeros((weight.layers, store.levels), jnp.int32),
        loaded=jnp.zeros(weight.layers, jnp.int32),
        in_scale=scale,
        shape=weight.shape,
        tile=weight.tile,
    )


def _move(store: BitStackStore, model: LoadedStack, levels: np.ndarray, places: np.ndarray) -> Resized:
    found, new = weights(model.params), {}
    at, read, bytes_read = 0, 0, 0
    for weight in store.weights:
        mine = slice(at, at + weight.layers)
        new[weight.path], count = _resized(
            store, weight, found[weight.path], model.levels[mine], levels[mine], int(places[mine].sum())
        )
        read += count
        bytes_read += count * int(store.block_bytes[at])
        at += weight.layers
    dropped = len(blocks_between(levels, model.levels).matrix)
    return Resized(LoadedStack(replace(model.params, new), levels, places), read, dropped, bytes_read)


def _resized(store, weight, leaf: SignLowRank, old, wanted, places: int) -> tuple[SignLowRank, int]:
    """The weight with other blocks, and how many were read."""
    if np.array_equal(old, wanted) and places == leaf.signs.shape[0]:
        return leaf, 0
    slots = np.array(leaf.slots)
    level = np.arange(store.levels)[None]
    kept = level < np.minimum(old, wanted)[:, None]
    pool = (leaf.signs, leaf.u, leaf.v)
    if places != leaf.signs.shape[0]:
        rows = np.zeros(places, np.int32)  # what free places hold does not matter
        count = int(kept.sum())
        rows[:count] = slots[kept]
        moved = jax.block_until_ready(_regrouped(pool, rows))
        for array in pool:
            array.delete()
        pool = moved
        slots[kept] = np.arange(count)
    free = iter(np.setdiff1d(np.arange(places), slots[kept]))
    missing = blocks_between(old, wanted)
    for layer, number in zip(missing.matrix, missing.level, strict=True):
        slots[layer, number] = place = next(free)
        pool = _write(pool, jnp.int32(place), store.read_block(weight, int(layer), int(number)))
    slots[level >= wanted[:, None]] = 0
    resized = dataclasses.replace(
        leaf,
        signs=pool[0],
        u=pool[1],
        v=pool[2],
        slots=jnp.asarray(slots),
        loaded=jnp.asarray(wanted, jnp.int32),
    )
    return resized, len(missing.matrix)


@jax.jit
def _regrouped(pool, rows):
    """A new pool made of some places of an old one."""
    return tuple(a[rows] for a in pool)


@functools.partial(jax.jit, donate_argnums=0)
def _write(pool, place, block):
    return tuple(jax.lax.dynamic_update_index_in_dim(a, b, place, 0) for a, b in zip(pool, block, strict=True))
